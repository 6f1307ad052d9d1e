"""The processes of a deployment on this machine: their files, command lines, and their spec."""

from __future__ import annotations

import sys

from contract.specs import AnySpec, InferenceServerSpec, ProxySpec, render
from infra.local.edit import Wanted
from infra.local.fit import stage_environment
from infra.local.machine import LOOPBACK
from infra.local.process import ProcessDefinition
from infra.local.rollout import RolloutDefinition
from infra.local.state import StateFolder
from infra.plan.process_specs import (
    Addresses,
    group_spec,
    inference_server_spec,
    keeper_spec,
    master_spec,
    proxy_spec,
    stage_spec,
)
from infra.plan.stack_plan import StackPlan
from infra.stack.api_keys import local_api_keys_file
from infra.stack.config import DeploymentConfig

# Until a process answers /livez, which it does before it fetches or loads anything.
STARTUP_S = 60.0
# Stages keep every core busy. What they have computed is to reach the users first: 16 users waited
# 3 ms less for each tier's turn (benchmarks/README.md).
STAGE_NICENESS = 10
# From the front to the back: who drains must still be served by those behind.
TIERS = ("inference-server", "proxy-block", "master", "stage")


def define_processes(
    folder: StateFolder,
    deployment: DeploymentConfig,
    plan: StackPlan,
    addresses: Addresses,
    commit: str,
    engine: str = "",
) -> Wanted:
    """How each process is started, with its file, and how what they serve is brought in. `engine`
    is the program of a platform that is not our own."""
    if deployment.platform == "vllm":
        definitions = _keepers(folder, deployment, addresses, engine)
    else:
        definitions = _rank_group(folder, deployment, addresses)
    for block in deployment.proxy_blocks:
        sessions = str(folder.sessions(block.block_id))
        proxy = proxy_spec(deployment, block, addresses, sessions_path=sessions)
        definitions.append(_light(folder, "proxy-block", f"proxy-{block.block_id}", proxy))
    if deployment.inference_server.enabled:
        # Discovery needs a cluster; here the stack's own blocks are all there are.
        log = str(folder.request_log)
        server = inference_server_spec(deployment, addresses, request_log_path=log)
        keys = local_api_keys_file()
        options = ("--api-keys-file", str(keys)) if keys else ()
        definitions.append(_light(folder, "inference-server", "inference-server", server, options))
    spec = render(group_spec(deployment, plan.ranks, commit=commit))
    return Wanted(
        tuple(definitions),
        deployment.common_params.request_deadline_s,
        _rollout(folder, deployment, addresses, spec),
    )


def _rollout(
    folder: StateFolder, deployment: DeploymentConfig, addresses: Addresses, spec: str
) -> RolloutDefinition:
    questions = ["--master", addresses.master_url]
    if deployment.proxy_blocks:
        block = deployment.proxy_blocks[0].block_id
        questions += ["--block", addresses.block_urls[block], "--block-id", block]
        # The keys' file is the user's, and none of them is ours.
        if deployment.inference_server.enabled and local_api_keys_file() is None:
            server = f"http://{LOOPBACK}:{addresses.inference_port}"
            questions += ["--inference-server", server]
    return RolloutDefinition(
        text=spec,
        wanted=str(folder.spec("group.wanted")),
        served=str(folder.served_spec),
        signing_key=str(folder.signing_key_file),
        reason=str(folder.path / "rollout.reason"),
        log=str(folder.log("rollout")),
        stall_s=deployment.timeouts.stall_s,
        questions=tuple(questions),
    )


def _rank_group(
    folder: StateFolder, deployment: DeploymentConfig, addresses: Addresses
) -> list[ProcessDefinition]:
    token = ("--token-file", str(folder.token_file))
    files = _file(folder, "master", master_spec(deployment, addresses))
    served = ("--group-spec", str(folder.served_spec))
    definitions = [
        ProcessDefinition(
            name="master",
            tier="master",
            command=(sys.executable, "-m", "runner.master", "--spec", *files, *served, *token),
            url=f"http://{LOOPBACK}:{addresses.http_port}",
            log=folder.log("master"),
            startup_s=STARTUP_S,
            files=files,
        )
    ]
    for params in deployment.ranks:
        name = f"stage-{params.rank}"
        spec = stage_spec(deployment, params, addresses)
        files = _file(folder, name, spec)
        arguments = ("-m", "runner.stage", "--spec", *files, *token)
        definitions.append(
            ProcessDefinition(
                name=name,
                tier="stage",
                command=("nice", "-n", str(STAGE_NICENESS), sys.executable, *arguments),
                url=f"http://{LOOPBACK}:{spec.health_port}",
                log=folder.log(name),
                startup_s=STARTUP_S,
                environment=stage_environment(deployment, params.rank),
                files=files,
            )
        )
    return definitions


def _keepers(
    folder: StateFolder, deployment: DeploymentConfig, addresses: Addresses, engine: str
) -> list[ProcessDefinition]:
    """One for each rank: the first has the master's place, and its engine's processes below it."""
    token = ("--token-file", str(folder.token_file))
    served = ("--group-spec", str(folder.served_spec))
    definitions = []
    for params in deployment.ranks:
        name = f"keeper-{params.rank}"
        spec = keeper_spec(deployment, params, addresses, engine=engine, niceness=STAGE_NICENESS)
        files = _file(folder, name, spec)
        options = (*(served if params.rank == 0 else ()), *token)
        arguments = ("-m", "runner.keeper", "--spec", *files, *options)
        definitions.append(
            ProcessDefinition(
                name=name,
                tier="stage",
                command=(sys.executable, *arguments),
                url=f"http://{LOOPBACK}:{spec.http_port}",
                log=folder.log(name),
                startup_s=STARTUP_S,
                environment=stage_environment(deployment, params.rank),
                files=files,
            )
        )
    return definitions


def _light(
    folder: StateFolder,
    tier: str,
    name: str,
    spec: ProxySpec | InferenceServerSpec,
    options: tuple[str, ...] = (),
) -> ProcessDefinition:
    files = _file(folder, name, spec)
    module = tier.replace("-", "_")
    return ProcessDefinition(
        name=name,
        tier=tier,
        command=(sys.executable, "-m", module, "--spec", *files, *options),
        url=f"http://{LOOPBACK}:{spec.port}",
        log=folder.log(name),
        startup_s=STARTUP_S,
        files=files,
    )


def _file(folder: StateFolder, name: str, spec: AnySpec) -> dict[str, str]:
    """The text by the path of one process's file."""
    return {str(folder.spec(name)): render(spec)}
