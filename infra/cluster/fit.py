"""A stack file's deployment, fitted to clusters: what pods ask for and where processes meet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from contract.specs import INFERENCE_PORT, MASTER_HTTP_PORT
from infra.plan.applied import Applied
from infra.plan.layers import RankPlan
from infra.plan.lock import ModelReader
from infra.plan.model_config import is_fetched
from infra.plan.process_specs import Addresses, StagePorts
from infra.plan.stack_plan import StackPlan, plan_stack
from infra.plan.table import byte_size
from infra.stack.cluster_config import ModelCache
from infra.stack.config import DeploymentConfig, RankParams
from infra.stack.faults import StackConfigError

# What a rank asks for where the stack file says nothing.
_RANK_CORES = 1.0
_GIB = 2**30
# Memory of a CPU's rank: KV for so many requests of that length, at most as many as run at once.
_REQUESTS, _REQUEST_TOKENS = 8, 2048
# Of a GPU's host: interpreter, libraries and CUDA's own part, beside one tensor after the other. A
# pod that runs is not replaced for more of it before it has less than the second figure left.
_HOST_OF_GPU, _LEAST_HOST_OF_GPU = 6 * _GIB, 4 * _GIB
# Of another engine's processes on a CPU, beside weights and KV.
_ENGINE_OF_CPU = 6 * _GIB
# Where nobody knows what the rank will hold.
_UNKNOWN_WEIGHTS, _UNKNOWN_TENSOR = 16 * _GIB, 4 * _GIB
_MEMORY_STEP = 2**28
# In a model cache: tokenizer and configuration, what a demo model is made of.
_BESIDE_MODEL = _GIB
_DERIVED = ("cpu", "memory")


def plan_on_clusters(
    deployment: DeploymentConfig,
    reader: ModelReader | None = None,
    applied: Applied | None = None,
) -> tuple[DeploymentConfig, StackPlan]:
    """The deployment with requests for every rank, and the plan that they allow.

    Cores, memory and room in the model cache that the file does not give stay as `applied` has them
    while the model fits.
    Raises StackConfigError, as plan_stack does.
    """
    kept = _as_applied(deployment, applied)
    notes: list[str] = []
    try:
        plan = plan_stack(kept, reader)
        fits = _hosts_hold(kept, plan.ranks)
    except StackConfigError:
        if kept == deployment:
            raise
        plan, fits = plan_stack(deployment, reader), False
    if not fits:
        kept, notes = _grown(deployment, kept, plan)
    fitted = _cache_as_applied(fit(kept, plan.ranks, plan.max_model_len), deployment, applied)
    # On CPU a rank's KV cache lies in the memory that it was just given.
    if deployment.gpu_pinning == "none":
        plan = plan_stack(fitted, reader)
    return fitted, replace(plan, notes=(*plan.notes, *notes))


def _as_applied(deployment: DeploymentConfig, applied: Applied | None) -> DeploymentConfig:
    """A new figure would be another pod, where the one that runs does as well."""
    ranks = list(deployment.ranks)
    for params, before in zip(deployment.ranks, applied.ranks if applied else (), strict=False):
        missing = [key for key in _DERIVED if getattr(params, key) is None]
        kept = {key: before[key] for key in missing if before.get(key) is not None}
        ranks[params.rank] = params.model_copy(update=kept)
    return deployment.model_copy(update={"per_rank_params": ranks})


def _hosts_hold(deployment: DeploymentConfig, plan: Sequence[RankPlan]) -> bool:
    """Whether the hosts of GPUs have room for the tensors that pass through them; what a rank on a
    CPU has is judged by the plan itself."""
    return deployment.gpu_pinning == "none" or all(
        params.memory is None or params.memory >= _LEAST_HOST_OF_GPU + (rank.largest_bytes or 0)
        for params, rank in zip(deployment.ranks, plan, strict=True)
    )


def _cache_as_applied(
    fitted: DeploymentConfig, deployment: DeploymentConfig, applied: Applied | None
) -> DeploymentConfig:
    """A cache without a limit stays without one, and one that is large enough as large as it is."""
    given, cache = deployment.model_cache, fitted.model_cache
    before = applied.stack.get("model_cache") if applied else None
    if before is None or given.size or before["mode"] != given.mode:
        return fitted
    if before["size"] is not None and before["size"] < (cache.size or 0):
        return fitted
    cache = cache.model_copy(update={"size": before["size"]})
    return fitted.model_copy(update={"model_cache": cache})


def _grown(
    deployment: DeploymentConfig, kept: DeploymentConfig, plan: StackPlan
) -> tuple[DeploymentConfig, list[str]]:
    """`kept`, with memory as for a new stack for the ranks of `deployment` that need more; and a
    sentence about each."""
    ranks, notes = [], []
    fitted = fit(deployment, plan.ranks, plan.max_model_len)
    for given, before, fresh in zip(deployment.ranks, kept.ranks, fitted.ranks, strict=True):
        assert fresh.memory is not None
        grows = given.memory is None and before.memory is not None and fresh.memory > before.memory
        ranks.append(before.model_copy(update={"memory": fresh.memory}) if grows else before)
        if grows:
            notes.append(
                f"rank {given.rank} gets {byte_size(fresh.memory)} of memory instead of "
                f"{byte_size(before.memory)}, in which the model does not fit; "
                "so its pod is replaced"
            )
    return kept.model_copy(update={"per_rank_params": ranks}), notes


def fit(
    deployment: DeploymentConfig, plan: Sequence[RankPlan], longest: int | None = None
) -> DeploymentConfig:
    """Cores and memory for the ranks that name none, and the size of their model caches: every
    container has requests and limits. `longest` is that of a request, in tokens."""
    pairs = zip(deployment.ranks, plan, strict=True)
    fitted = [_fit_rank(deployment, *pair, longest) for pair in pairs]
    cache = _fit_cache(deployment, plan)
    return deployment.model_copy(update={"per_rank_params": fitted, "model_cache": cache})


def _fit_cache(deployment: DeploymentConfig, plan: Sequence[RankPlan]) -> ModelCache:
    """Room for two models, as while one takes the other's place, in steps of a power of two: hardly
    another model makes other pods. None is needed for a folder that the ranks have."""
    cache = deployment.model_cache
    sizes = [rank.file_bytes for rank in plan if rank.file_bytes is not None]
    name = deployment.common_params.model_name
    if cache.mode != "empty-dir" or cache.size or not is_fetched(name) or len(sizes) < len(plan):
        return cache
    needed = math.ceil((max(sizes) + _BESIDE_MODEL) / _GIB)
    return cache.model_copy(update={"size": 2 * _GIB * 2 ** math.ceil(math.log2(needed))})


def _fit_rank(
    deployment: DeploymentConfig, params: RankParams, plan: RankPlan, longest: int | None
) -> RankParams:
    memory = _derived_memory(deployment, plan, longest)
    return params.model_copy(
        update={
            "cpu": _RANK_CORES if params.cpu is None else params.cpu,
            "memory": memory if params.memory is None else params.memory,
        }
    )


def _derived_memory(deployment: DeploymentConfig, plan: RankPlan, longest: int | None) -> int:
    """Bytes: on a CPU what contract/memory.py says of some requests, or of the longest."""
    if deployment.gpu_pinning != "none":
        return _HOST_OF_GPU + (plan.largest_bytes or _UNKNOWN_TENSOR)
    share = plan.memory_share
    if share is None:
        return _UNKNOWN_WEIGHTS
    at_once = min(_REQUESTS, deployment.common_params.max_concurrent_requests)
    needed = share.needed_bytes(max(at_once * _REQUEST_TOKENS, longest or 0))
    if deployment.platform == "vllm":
        # Its keeper gives a quarter to KV, and its processes import for gigabytes.
        needed = max(needed + _ENGINE_OF_CPU, 4 * share.kv_bytes_per_token * (longest or 0))
    return _MEMORY_STEP * math.ceil(needed / _MEMORY_STEP)


def addresses(deployment: DeploymentConfig) -> Addresses:
    """Services by name. Ranks on several clusters meet at rank 0's advertise_address."""
    namespace = deployment.namespace
    master_host = f"{deployment.rank_master_name}.{namespace}.svc"
    if len(rank_clusters(deployment)) > 1:
        master_host = deployment.rank_params(0).advertise_address
    blocks = {block.block_id: block.port for block in deployment.proxy_blocks}
    return Addresses(
        master_host=master_host,
        master_port=deployment.common_params.master_port,
        master_url=f"http://{deployment.master_api_name}.{namespace}.svc:{MASTER_HTTP_PORT}",
        stages=(StagePorts(),) * deployment.nnodes,
        block_ports=blocks,
        block_urls={
            name: f"http://{deployment.proxy_name(name)}.{deployment.namespaces.blocks}.svc:{port}"
            for name, port in blocks.items()
        },
        inference_port=INFERENCE_PORT,
    )


def rank_clusters(deployment: DeploymentConfig) -> list[str]:
    """The clusters with ranks on them, that of rank 0 first."""
    return list(dict.fromkeys(deployment.cluster_of(params.rank) for params in deployment.ranks))


def stack_places(deployment: DeploymentConfig) -> list[tuple[str, str]]:
    """(cluster, namespace) of everything that a stack has, each once."""
    home = deployment.cluster_of(0)
    places = [(cluster, deployment.namespace) for cluster in rank_clusters(deployment)]
    if deployment.proxy_blocks:
        places.append((home, deployment.namespaces.blocks))
    if deployment.inference_server.enabled:
        places.append((home, deployment.namespaces.inference_server))
    return list(dict.fromkeys(places))


def namespaces_on(deployment: DeploymentConfig, cluster_id: str) -> list[str]:
    """Those of a stack's places that are on one cluster."""
    return [name for cluster, name in stack_places(deployment) if cluster == cluster_id]
