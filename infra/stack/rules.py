"""Rules that join several keys of a stack file. Each function yields Faults; none raises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from contract.faults import MISSING, Fault
from contract.models import DEMO_PREFIX
from contract.specs import MASTER_HTTP_PORT, STAGE_DATA_PORT, STAGE_HEALTH_PORT
from contract.web_model import is_address
from infra.stack.config import DeploymentConfig
from infra.stack.device_rules import device_faults
from infra.stack.engine_rules import cluster_engine_faults, engine_faults
from infra.stack.front_rules import cluster_front_faults, front_faults
from infra.stack.image_names import registry_of
from infra.stack.observability_rules import operator_faults
from infra.stack.ownership_rules import ownership_faults
from infra.stack.placement_rules import placement_faults
from infra.stack.pod_rules import pod_faults

NAME_LIMIT = 63
_STORE_URL = re.compile(
    r"rediss?://(?:[^/\s:@]*(?P<password>:[^/\s@]*)?@)?"
    r"(?:[A-Za-z0-9.-]+|\[[0-9a-f:]+\])(?::(?P<port>[0-9]{1,5}))?(?:/[0-9]{1,3})?"
)
# What belongs to one model_cache.mode alone.
_KEYS_OF_A_CACHE = {
    "claim_name": "existing-claim",
    "sub_path": "existing-claim",
    "read_only": "existing-claim",
    "host_path": "host-path",
}
_TAKEN_PORTS = {
    MASTER_HTTP_PORT: "the master's API",
    STAGE_DATA_PORT: "the stage",
    STAGE_HEALTH_PORT: "the stage's health",
}


def deployment_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    """Faults that matter on one machine and on clusters alike."""
    yield from _rank_number_faults(deployment)
    yield from engine_faults(deployment)
    yield from device_faults(deployment)
    yield from _name_faults(deployment)
    yield from _cluster_faults(deployment)
    yield from _layer_faults(deployment)
    yield from _block_faults(deployment)
    yield from front_faults(deployment)
    yield from _session_store_faults(deployment)
    yield from _model_faults(deployment)
    yield from _cache_faults(deployment)
    port = deployment.common_params.master_port
    if port in _TAKEN_PORTS:
        rule = f"is taken: {_TAKEN_PORTS[port]} listens on it in the same pod"
        yield Fault("common_params.master_port", port, rule)
    yield from placement_faults(deployment)
    yield from pod_faults(deployment)
    yield from operator_faults(deployment)
    yield from ownership_faults(deployment)


def cluster_deployment_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    """Faults that matter on clusters only: what `pulumi up` needs and one machine does not."""
    if not deployment.clusters:
        rule = "must declare each cluster, as in {my-cluster: {context: my-context}}"
        yield Fault("clusters", {}, rule)
    yield from cluster_front_faults(deployment)
    yield from _cluster_tier_faults(deployment)
    yield from _meeting_point_faults(deployment)
    yield from _image_faults(deployment)
    yield from cluster_engine_faults(deployment)


def _cluster_tier_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    for index, block in enumerate(deployment.proxy_blocks):
        if deployment.session_store.mode == "sqlite" and block.max_instances > 1:
            rule = (
                "must be 1 with session_store.mode sqlite, which instances cannot share; "
                "set it to valkey or url"
            )
            yield Fault(f"proxy_blocks[{index}].max_instances", block.max_instances, rule)
    store = deployment.session_store
    if store.mode == "valkey" and "@sha256:" not in store.image:
        rule = "must end in @sha256:<digest> with session_store.mode valkey"
        yield Fault("session_store.image", store.image, rule)


def _meeting_point_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    clusters = {deployment.cluster_of(params.rank) for params in deployment.ranks}
    if len(clusters) > 1 and not deployment.rank_params(0).advertise_address:
        rule = (
            "rank 0 needs advertise_address, at which the other clusters reach its pod: "
            "their DNS does not know its Service"
        )
        yield Fault("per_rank_params", MISSING, rule)


def _image_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    given = {"common_params.image": deployment.common_params.image}
    if deployment.proxy_blocks:
        given["images.proxy_block"] = deployment.images.proxy_block
    if deployment.inference_server.enabled:
        given["images.inference_server"] = deployment.images.inference_server
    if deployment.images.builder == "reference":
        for path, image in given.items():
            if "@sha256:" not in image:
                rule = "must end in @sha256:<digest> with images.builder reference"
                yield Fault(path, image, rule)
        return
    if not deployment.common_params.image:
        yield Fault("common_params.image", "", "is required: where the runner image is pushed to")
    for path, image in given.items():
        if "@" in image:
            rule = "must not end in a digest with images.builder docker: pushing gives it one"
            yield Fault(path, image, rule)
        elif image and not registry_of(image):
            yield Fault(path, image, "must begin with its registry, as in docker.io/me/runner:1")
    model = deployment.common_params.model_name
    baked = deployment.images.build_arguments.get("DEMO_MODEL")
    if deployment.platform == "torch" and model.startswith(DEMO_PREFIX) and baked != model:
        path = "images.build_arguments.DEMO_MODEL"
        rule = f"must be {model}, the model: it is made with pip, which the runner's image has not"
        yield Fault(path, baked or MISSING, rule)


def _rank_number_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    first_index: dict[int, int] = {}
    for index, params in enumerate(deployment.per_rank_params):
        path = f"per_rank_params[{index}].rank"
        if params.rank >= deployment.nnodes:
            yield Fault(path, params.rank, f"must be less than nnodes ({deployment.nnodes})")
        elif params.rank in first_index:
            rule = f"is listed twice: per_rank_params[{first_index[params.rank]}] has it too"
            yield Fault(path, params.rank, rule)
        first_index.setdefault(params.rank, index)
    unlisted = [str(rank) for rank in range(deployment.nnodes) if rank not in first_index]
    if unlisted and deployment.gpu_pinning != "none":
        ranks = ("rank " if len(unlisted) == 1 else "ranks ") + ", ".join(unlisted[:8])
        rule = f"does not list {ranks}; only gpu_pinning none has defaults for unlisted ranks"
        yield Fault("per_rank_params", MISSING, rule)


def _name_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    names = [
        # A label of a StatefulSet's pods has its name and a hash of ten digits at most.
        deployment.rank_name(deployment.nnodes - 1) + "-0123456789",
        deployment.rank_master_name,
        deployment.master_api_name,
        deployment.inference_server_name,
    ]
    longest = max(names, key=len)
    if len(longest) > NAME_LIMIT:
        spare = NAME_LIMIT - (len(longest) - len(deployment.deployment_name))
        rule = f'must be at most {spare} characters: "{longest}" exceeds {NAME_LIMIT}'
        yield Fault("deployment_name", deployment.deployment_name, rule)
    for index, block in enumerate(deployment.proxy_blocks):
        name = deployment.proxy_name(block.block_id)
        if len(name) > NAME_LIMIT:
            rule = f'the name "{name}" exceeds {NAME_LIMIT} characters'
            yield Fault(f"proxy_blocks[{index}].block_id", block.block_id, rule)


def _cluster_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    named = {"rank_0_cluster_id": deployment.rank_0_cluster_id}
    named |= {f"cluster_id[{index}]": name for index, name in enumerate(deployment.cluster_id)}
    ranks = {
        f"per_rank_params[{index}].cluster_id": params.cluster_id
        for index, params in enumerate(deployment.per_rank_params)
    }
    for path, name in (named | ranks).items():
        if name and deployment.clusters and name not in deployment.clusters:
            yield Fault(
                path, name, f"is not declared in clusters ({', '.join(deployment.clusters)})"
            )
    for path, name in ({"rank_0_cluster_id": deployment.rank_0_cluster_id} | ranks).items():
        if name and deployment.cluster_id and name not in deployment.cluster_id:
            yield Fault(path, name, f"is not in cluster_id ({', '.join(deployment.cluster_id)})")
    own = deployment.rank_params(0).cluster_id
    if own and deployment.rank_0_cluster_id and own != deployment.rank_0_cluster_id:
        rule = f"rank 0's own cluster_id says {own}; they must be the same"
        yield Fault("rank_0_cluster_id", deployment.rank_0_cluster_id, rule)
    yield from _several_clusters_faults(deployment)


def _several_clusters_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    used = sorted({deployment.cluster_of(params.rank) for params in deployment.ranks})
    if len(used) == 1:
        return
    if not deployment.multi_cluster:
        rule = f"ranks are on several clusters ({', '.join(used)}); set it to true"
        yield Fault("multi_cluster", False, rule)
    elif not deployment.routable_pod_addresses:
        without = [str(params.rank) for params in deployment.ranks if not params.advertise_address]
        if without:
            rule = (
                "ranks on several clusters need advertise_address for each rank (missing: "
                f"{', '.join(without)}) or routable_pod_addresses: true"
            )
            yield Fault("multi_cluster", True, rule)


def _layer_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    """Explicit layers must follow one another; where the model ends is the plan's check."""
    expected: int | None = 0
    index_of = {params.rank: index for index, params in enumerate(deployment.per_rank_params)}
    for params in deployment.ranks:
        layers = params.layer_range
        if layers is None:
            expected = None
            continue
        path = f"per_rank_params[{index_of[params.rank]}].layers"
        if params.rank == 0 and layers[0] != 0:
            yield Fault(path, params.layers, "rank 0 must start with layer 0")
        elif expected is not None and layers[0] != expected:
            previous = f"rank {params.rank - 1} ends with layer {expected - 1}"
            rule = f"must start with layer {expected}: {previous}; each layer is held once"
            yield Fault(path, params.layers, rule)
        elif expected is None and layers[0] < params.rank:
            rule = f"leaves no layer for each of the {params.rank} ranks before"
            yield Fault(path, params.layers, rule)
        expected = layers[1]


def _model_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    name = deployment.common_params.model_name
    if not is_address(name):
        return
    try:
        parts = urlsplit(name)
        plain = parts.hostname and (parts.port or 1) and not parts.query and not parts.fragment
    except ValueError:
        plain = False
    if not plain or "@" in name:
        # What lies before an @ or behind a ? may be a secret.
        rule = (
            "must be https://HOST/PATH or s3://BUCKET/PATH of a folder, without a user, a password "
            "or a query"
        )
        yield Fault("common_params.model_name", MISSING, rule)


def _cache_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    cache = deployment.model_cache
    if cache.mode == "existing-claim" and not cache.claim_name:
        yield Fault("model_cache.claim_name", "", "is required with mode existing-claim")
    if cache.mode == "existing-claim" and deployment.namespaces.create:
        rule = (
            f"existing-claim needs namespaces.create: false, and namespace {deployment.namespace}"
            " made before: what this stack creates and destroys can hold no claim of yours"
        )
        yield Fault("model_cache.mode", cache.mode, rule)
    if cache.mode in ("own-claim", "shared-claim") and cache.size is None:
        yield Fault("model_cache.size", None, f"is required with mode {cache.mode}")
    if cache.mode == "host-path" and not cache.host_path:
        yield Fault("model_cache.host_path", "", "is required with mode host-path")
    if cache.mode == "host-path" and deployment.namespaces.create:
        rule = (
            "host-path needs namespaces.create: false, and namespace "
            f"{deployment.namespace} made before with Pod Security privileged: the ones that this "
            "stack makes are restricted, and that allows no folder of a node"
        )
        yield Fault("model_cache.mode", cache.mode, rule)
    for key, mode in _KEYS_OF_A_CACHE.items():
        if getattr(cache, key) and cache.mode != mode:
            rule = f"is refused with mode {cache.mode}: it is of mode {mode}"
            yield Fault(f"model_cache.{key}", getattr(cache, key), rule)


def _block_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    seen: set[str] = set()
    for index, block in enumerate(deployment.proxy_blocks):
        path = f"proxy_blocks[{index}]"
        if block.block_id in seen:
            yield Fault(f"{path}.block_id", block.block_id, "is listed twice")
        seen.add(block.block_id)
        if block.max_instances < block.min_instances:
            rule = f"must be at least min_instances ({block.min_instances})"
            yield Fault(f"{path}.max_instances", block.max_instances, rule)
    if deployment.inference_server.enabled and not deployment.proxy_blocks:
        rule = "must list a block: the inference server would have none to serve"
        yield Fault("proxy_blocks", [], rule)


def _session_store_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    store = deployment.session_store
    path = "session_store.url"
    # What lies before an @ may be a password.
    shown = "...@" + store.url.rpartition("@")[2] if "@" in store.url else store.url
    if store.mode != "url":
        if store.url:
            yield Fault(path, shown, f"is refused with session_store.mode {store.mode}")
    elif not (match := _STORE_URL.fullmatch(store.url)) or int(match["port"] or 1) > 65535:
        yield Fault(path, shown, "must be as in redis://host:6379/0, or rediss:// for TLS")
    elif match["password"] is not None:
        rule = (
            "must not hold a password; `pulumi config set --secret "
            "splitstack:session_store_password` keeps it"
        )
        yield Fault(path, shown, rule)
    if store.mode == "url" and store.size is not None:
        yield Fault("session_store.size", store.size, "is refused with session_store.mode url")
