"""The processes of a deployment on this machine: their spec files and command lines."""

from __future__ import annotations

import sys

from contract.specs import AnySpec, InferenceServerSpec, ProxySpec, render
from infra.local.fit import stage_environment
from infra.local.machine import LOOPBACK
from infra.local.process import ProcessDefinition
from infra.local.state import StateFolder
from infra.plan.process_specs import (
    Addresses,
    group_spec,
    inference_server_spec,
    master_spec,
    proxy_spec,
    stage_spec,
)
from infra.plan.stack_plan import StackPlan
from infra.stack.api_keys import local_api_keys_file
from infra.stack.config import DeploymentConfig

# Light tiers start in seconds; a stage or the master may have weights or a tokenizer to fetch.
LIGHT_STARTUP_S = 60.0
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
) -> list[ProcessDefinition]:
    """Write every spec file and say how each process is started."""
    spec = _written(folder, "group", group_spec(deployment, plan.ranks, commit=commit))
    definitions = _rank_group(folder, deployment, addresses, spec)
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
    return definitions


def _rank_group(
    folder: StateFolder, deployment: DeploymentConfig, addresses: Addresses, group: str
) -> list[ProcessDefinition]:
    """`group` is the file with what is served."""
    token = ("--token-file", str(folder.token_file))
    master = _written(folder, "master", master_spec(deployment, addresses))
    startup_s = deployment.common_params.load_timeout_s
    files = ("--spec", master, "--group-spec", group, *token)
    definitions = [
        ProcessDefinition(
            name="master",
            tier="master",
            command=(sys.executable, "-m", "runner.master", *files),
            url=f"http://{LOOPBACK}:{addresses.http_port}",
            log=folder.log("master"),
            startup_s=startup_s,
        )
    ]
    for params in deployment.ranks:
        name = f"stage-{params.rank}"
        spec = stage_spec(deployment, params, addresses)
        arguments = ("-m", "runner.stage", "--spec", _written(folder, name, spec), *token)
        definitions.append(
            ProcessDefinition(
                name=name,
                tier="stage",
                command=("nice", "-n", str(STAGE_NICENESS), sys.executable, *arguments),
                url=f"http://{LOOPBACK}:{spec.health_port}",
                log=folder.log(name),
                startup_s=startup_s,
                environment=stage_environment(deployment, params.rank),
            )
        )
    return definitions


def _written(folder: StateFolder, name: str, spec: AnySpec) -> str:
    path = folder.spec(name)
    path.write_text(render(spec), "utf-8")
    return str(path)


def _light(
    folder: StateFolder,
    tier: str,
    name: str,
    spec: ProxySpec | InferenceServerSpec,
    options: tuple[str, ...] = (),
) -> ProcessDefinition:
    path = _written(folder, name, spec)
    module = tier.replace("-", "_")
    return ProcessDefinition(
        name=name,
        tier=tier,
        command=(sys.executable, "-m", module, "--spec", path, *options),
        url=f"http://{LOOPBACK}:{spec.port}",
        log=folder.log(name),
        startup_s=LIGHT_STARTUP_S,
    )
