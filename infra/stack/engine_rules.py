"""Rules of the engine that the ranks run: what another one than ours takes, and what it cannot."""

from __future__ import annotations

from collections.abc import Iterator

from contract.engine_arguments import refusals
from contract.faults import MISSING, Fault
from contract.models import DEMO_PREFIX
from infra.stack.config import CommonParams, DeploymentConfig

VLLM_IMAGE = "VLLM_IMAGE"
_VLLM_ALONE = ("tensor_parallel", "gpu_memory_utilization", "extra_engine_args")
# What a rank's environment would undo of what the keeper sets, or run in the engine.
_KEPT_VARIABLES = ("VLLM_", "PYTHON", "LD_PRELOAD")


def engine_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    """Faults of the keys that belong to one platform."""
    common = deployment.common_params
    if deployment.platform == "torch":
        for key in _VLLM_ALONE:
            value = getattr(common, key)
            if value != CommonParams.model_fields[key].get_default(call_default_factory=True):
                rule = "is refused with platform torch: it belongs to platform vllm"
                yield Fault(f"common_params.{key}", value, rule)
        return
    for place, rule in refusals(common.extra_engine_args).items():
        argument = common.extra_engine_args[place]
        yield Fault(f"common_params.extra_engine_args[{place}]", argument, rule)
    for name, value in deployment.extra_env.items():
        if name.startswith(_KEPT_VARIABLES):
            rule = "is refused with platform vllm: it belongs to the engine and its keeper"
            yield Fault(f"extra_env.{name}", value, rule)
    yield from _trust_faults(deployment)
    on_cpu = deployment.gpu_pinning == "none"
    if on_cpu and common.gpu_memory_utilization is not None:
        rule = "is refused with gpu_pinning none: there memory says what a rank may take"
        yield Fault("common_params.gpu_memory_utilization", common.gpu_memory_utilization, rule)
    if on_cpu and common.tensor_parallel > 1:
        rule = "must be 1 with gpu_pinning none: there a rank computes on one processor"
        yield Fault("common_params.tensor_parallel", common.tensor_parallel, rule)


def _trust_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    """Its ranks send one another pickles, on every port: whoever reaches one runs code there."""
    why = (
        "its ranks trust whoever reaches their ports, so that they have to be on one cluster, "
        "behind its network policies"
    )
    if len({deployment.cluster_of(params.rank) for params in deployment.ranks}) > 1:
        yield Fault("platform", "vllm", f"is refused with ranks on several clusters: {why}")
    for index, params in enumerate(deployment.per_rank_params):
        if params.advertise_address:
            rule = f"is refused with platform vllm: {why}"
            yield Fault(
                f"per_rank_params[{index}].advertise_address", params.advertise_address, rule
            )


def cluster_engine_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    """What a cluster needs for it."""
    if deployment.platform != "vllm":
        return
    if not deployment.network_policies.enabled and deployment.nnodes > 1:
        rule = (
            "must be true with platform vllm and several ranks: they trust whoever reaches their "
            "ports"
        )
        yield Fault("network_policies.enabled", False, rule)
    model = deployment.common_params.model_name
    if model.startswith(DEMO_PREFIX):
        rule = (
            "is made of a package, which the engine's image has not: name a hub id, an address or "
            "a folder"
        )
        yield Fault("common_params.model_name", model, rule)
    if deployment.images.builder == "docker":
        base = deployment.images.build_arguments.get(VLLM_IMAGE, "")
        if "@sha256:" not in base:
            path = f"images.build_arguments.{VLLM_IMAGE}"
            rule = (
                "must be the engine's image by its digest, as in "
                "docker.io/vllm/vllm-openai@sha256:<digest>: the keeper is laid on top of it"
            )
            yield Fault(path, base or MISSING, rule)
