"""A stack file's deployment, fitted to this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from contract.host_memory import available_bytes
from infra.local import machine
from infra.local.state import ROOT, StateFolder, supervisor_runs
from infra.plan.lock import ModelReader
from infra.plan.process_specs import Addresses, StagePorts
from infra.plan.stack_plan import StackPlan, plan_stack
from infra.stack.config import DeploymentConfig, RankParams
from infra.stack.faults import UserError

# The rest is left to what else runs here.
MEMORY_SHARE = 0.8


def fit(deployment: DeploymentConfig, held: int = 0) -> DeploymentConfig:
    """Cores and memory for the ranks that name none, and the loopback for every rank.

    `held` bytes are taken by what is to be replaced. Raises UserError where the machine lacks the
    memory or the GPUs that are asked for.
    """
    if deployment.gpu_pinning != "none":
        _check_gpus(deployment)
    ranks = deployment.ranks
    available = available_bytes() + held
    asked = sum(params.memory or 0 for params in ranks)
    if asked > available:
        raise UserError(
            f"per_rank_params: the ranks ask for {asked:,} bytes of memory together and this "
            f"machine has {available:,} available; give them less, or end what else runs here"
        )
    open_ranks = max(1, sum(params.memory is None for params in ranks))
    memory = int((available - asked) * MEMORY_SHARE) // open_ranks
    cores = max(1, machine.cores() // deployment.nnodes)
    fitted = [_fit_rank(params, cores, memory) for params in ranks]
    return deployment.model_copy(update={"per_rank_params": fitted})


def plan_before_up(deployment: DeploymentConfig, reader: ModelReader | None = None) -> StackPlan:
    """The plan as `up` would make it now, where that is this machine: no clusters, no GPUs.

    Raises UserError and StackConfigError.
    """
    if deployment.clusters or deployment.gpu_pinning != "none":
        return plan_stack(deployment, reader)
    plan = plan_stack(fit(deployment), reader)
    if note := faster_dtype(deployment):
        plan = replace(plan, notes=(*plan.notes, note))
    shared = [str(params.rank) for params in deployment.ranks if params.memory is None]
    if not shared or plan.kv_room is None:
        return plan
    return plan.with_estimate(
        f"no memory is given for rank {', '.join(shared)}: a part of what this machine has "
        "available now; `up` looks again"
    )


def faster_dtype(deployment: DeploymentConfig) -> str:
    """What this machine's processor would be faster with, in a sentence; "" where that is in force.

    `auto` stays with float32, in which a text hangs on neither the cut nor the company. What was
    measured stands in benchmarks/README.md.
    """
    common = deployment.common_params
    asked = common.dtype == "auto" and deployment.gpu_pinning == "none"
    if not asked or not machine.multiplies_bfloat16():
        return ""
    return (
        "this processor multiplies bfloat16, which common_params.dtype = auto does not take on a "
        "CPU: with bfloat16 the tokens of one answer come about 1.5 times as fast, a long prompt "
        "takes longer, and weights and KV take half the memory, while near ties between tokens may "
        "fall the other way"
    )


def fit_as_before(
    deployment: DeploymentConfig, ranks: Sequence[Mapping[str, Any]], held: int = 0
) -> DeploymentConfig:
    """As `fit`, but ranks that are there already have the cores and memory that they have now:
    another figure is another process. New ones share what is left; `held` as there."""
    before = [
        _fit_rank(params, rank["cpu"], rank["memory"])
        for params, rank in zip(deployment.ranks, ranks, strict=False)
    ]
    fresh = deployment.ranks[len(before) :]
    kept = deployment.model_copy(update={"per_rank_params": [*before, *fresh]})
    return fit(kept, held) if fresh else kept


def _fit_rank(params: RankParams, cores: float, memory: int) -> RankParams:
    return params.model_copy(
        update={
            "cpu": cores if params.cpu is None else params.cpu,
            "memory": memory if params.memory is None else params.memory,
            "nccl_socket_ifname": "",
            "advertise_address": "",
        }
    )


def _check_gpus(deployment: DeploymentConfig) -> None:
    found = machine.gpu_count()
    if found < deployment.nnodes:
        raise UserError(
            f"gpu_pinning = {deployment.gpu_pinning!r}: each of the {deployment.nnodes} ranks "
            f"needs a GPU of its own and this machine has {found}; deploy the stack on its "
            "clusters with pulumi up, or run it on CPU with --set gpu_pinning=none and without "
            "the device keys of per_rank_params"
        )


def stage_environment(deployment: DeploymentConfig, rank: int) -> dict[str, str]:
    """On one machine rank N uses GPU N, whichever devices it has on its node of the cluster."""
    environment = dict(deployment.extra_env)
    if deployment.gpu_pinning != "none":
        environment["CUDA_VISIBLE_DEVICES"] = str(rank)
    return environment


def check_inference_port(deployment: DeploymentConfig) -> None:
    """Raises UserError that names who has the port where that is a stack of ours."""
    port = deployment.inference_server.node_port
    if not deployment.inference_server.enabled or machine.port_is_free(port):
        return
    url = f"http://{machine.LOOPBACK}:{port}"
    holder = "another process (`ss -ltnp` shows which)"
    for path in ROOT.glob("*/state.json"):
        state = StateFolder(path.parent.name).read()
        if state and state.front_url == url and supervisor_runs(state):
            holder = f"deployment {state.deployment_name}"
    raise UserError(
        f"inference_server.node_port = {port}: the port is in use by {holder}; end that, or take "
        "another port with --set inference_server.node_port=PORT"
    )


def addresses(
    deployment: DeploymentConfig, ports: Sequence[int], former: Addresses | None = None
) -> Addresses:
    """Everything on the loopback; `ports` as many as `port_count` says.

    What `former` has an address for keeps it.
    """
    free = iter(ports)
    master_port, http_port = next(free), next(free)
    stages = tuple(StagePorts(next(free), next(free)) for _ in range(deployment.nnodes))
    block_ports = {block.block_id: next(free) for block in deployment.proxy_blocks}
    if former is not None:
        master_port, http_port = former.master_port, former.http_port
        stages = (*former.stages[: deployment.nnodes], *stages[len(former.stages) :])
        block_ports |= {
            name: port for name, port in former.block_ports.items() if name in block_ports
        }
    return Addresses(
        bind_address=machine.LOOPBACK,
        master_host=machine.LOOPBACK,
        master_port=master_port,
        http_port=http_port,
        master_url=f"http://{machine.LOOPBACK}:{http_port}",
        stages=stages,
        block_ports=block_ports,
        block_urls={
            name: f"http://{machine.LOOPBACK}:{port}" for name, port in block_ports.items()
        },
        inference_port=deployment.inference_server.node_port,
    )


def port_count(deployment: DeploymentConfig) -> int:
    """Two for the master, two for each stage, one for each proxy block."""
    return 2 + 2 * deployment.nnodes + len(deployment.proxy_blocks)
