"""The pod of one rank: container `stage`, on rank 0 with container `master` beside it; with another
engine container `keeper` alone."""

from __future__ import annotations

from collections.abc import Collection

import pulumi
from pulumi_kubernetes.core import v1 as core

from contract.specs import MASTER_HTTP_PORT, STAGE_DATA_PORT, STAGE_HEALTH_PORT
from infra.cluster.ca_bundle import bundle_environment, bundle_mounts
from infra.cluster.labels import RANK_COMPONENT, selector
from infra.cluster.mounts import (
    SECRET_FOLDER,
    SPEC_FOLDER,
    Mount,
    claim_mount,
    config_map_mount,
    empty_mount,
    host_mount,
    memory_mount,
    secret_mount,
)
from infra.cluster.placement import Placement
from infra.cluster.pods import Container, Pace, http_probes, pod_spec, python_module
from infra.stack.config import DeploymentConfig, RankParams

STAGE_FILE, MASTER_FILE, GROUP_FILE = "stage.json", "master.json", "group.json"
KEEPER_FILE = "keeper.json"
# Where an engine keeps what it has compiled; the pod's own.
ENGINE_CACHE = "/tmp/engine"  # noqa: S108
GROUP_FOLDER = "/etc/splitstack-group"
GROUP_TOKEN_FILE = "group_token"  # noqa: S105 (a file's name)
HUB_TOKEN_FILE = "hub_token"  # noqa: S105 (a file's name)
S3_CREDENTIALS_FILE = "s3_credentials"
# The variables by which libraries find files of the Secret.
_READ_BY_LIBRARIES = {
    HUB_TOKEN_FILE: "HF_TOKEN_PATH",
    S3_CREDENTIALS_FILE: "AWS_SHARED_CREDENTIALS_FILE",
}
CACHE_FOLDER = "/var/cache/splitstack"
GPU = "nvidia.com/gpu"
CLAIM = "gpu"
# A throttled node that misses probes for a while must not cost a whole load. What this finds late
# is found by others: a crash by the kubelet at once, a stall by the group's heartbeats.
LIVENESS = Pace(period_s=10, timeout_s=5, failures=3)
# The most that ranks get to end their requests. The same for every deadline of requests: an edit of
# that is to replace no pod, and a rank ends as soon as its own requests have.
_DRAIN_S = 3600
# Until a process answers; what it serves is not loaded by then.
_STARTUP_S = 300
_CACHE = "model-cache"


def group_spec_name(deployment: DeploymentConfig) -> str:
    """The ConfigMap with what the group serves; rank 0's master reads it."""
    return f"{deployment.deployment_name}-spec"


def rank_secret_name(deployment: DeploymentConfig) -> str:
    """The Secret with the group's token and the hub's."""
    return f"{deployment.deployment_name}-ranks"


def rank_account_name(deployment: DeploymentConfig) -> str:
    """The ServiceAccount of the ranks, which may do nothing."""
    return f"{deployment.deployment_name}-{RANK_COMPONENT}"


def model_claim_name(deployment: DeploymentConfig, rank: int) -> str:
    """A claim for each rank: it reads only its own tensors, and any storage class will do."""
    return f"{deployment.rank_name(rank)}-models"


def shared_claim_name(deployment: DeploymentConfig) -> str:
    """One claim for all ranks of a cluster, of a storage class that several nodes may write to."""
    return f"{deployment.deployment_name}-models"


def device_claim_name(deployment: DeploymentConfig, rank: int) -> str:
    """The template of the claim on a rank's device (gpu_pinning dra)."""
    return f"{deployment.rank_name(rank)}-{CLAIM}"


def rank_pod_spec(
    deployment: DeploymentConfig,
    params: RankParams,
    image: pulumi.Input[str],
    *,
    secret_files: Collection[str],
) -> core.PodSpecArgs:
    """`params` must name cores and memory; `secret_files` are the names in the ranks' Secret."""
    if deployment.platform == "vllm":
        containers = [_keeper(deployment, params, image, secret_files)]
    else:
        containers = [_stage(deployment, params, image, secret_files)]
        if params.rank == 0:
            containers.insert(0, _master(deployment, image, secret_files))
    return pod_spec(
        containers=containers,
        drain_s=_DRAIN_S,
        placement=_placement(deployment, params),
        template=deployment.pod_template,
        service_account=rank_account_name(deployment),
        image_pull_secrets=deployment.image_pull_secrets,
        resource_claims=_resource_claims(deployment, params.rank),
    )


def _placement(deployment: DeploymentConfig, params: RankParams) -> Placement:
    choice = deployment.node_choice(params.rank)
    return Placement(
        node=params.node_id,
        node_selector=choice.node_selector,
        node_affinity=choice.node_affinity,
        topology=deployment.placement.topology,
        group=selector(deployment, RANK_COMPONENT),
        runtime_class=deployment.rank_runtime_class,
        priority_class=deployment.priority_class,
        tolerations=deployment.tolerations,
    )


def _stage(
    deployment: DeploymentConfig,
    params: RankParams,
    image: pulumi.Input[str],
    secret_files: Collection[str],
) -> Container:
    assert params.cpu is not None
    assert params.memory is not None
    mode = deployment.gpu_pinning
    return Container(
        name="stage",
        image=image,
        command=python_module("runner.stage", *_arguments(STAGE_FILE)),
        ports={"data": STAGE_DATA_PORT, "health": STAGE_HEALTH_PORT},
        # Started once it answers at all: a load has no limit here, and ends itself when it stalls.
        probes=http_probes(
            STAGE_HEALTH_PORT,
            startup_s=_STARTUP_S,
            startup_path="/startedz",
            liveness=LIVENESS,
        ),
        cpu=params.cpu,
        memory=params.memory,
        environment=_environment(deployment, secret_files)
        | _device_environment(deployment, params),
        mounts=_mounts(deployment, params.rank),
        devices={GPU: 1} if mode == "resource" else {},
        claims=(CLAIM,) if mode == "dra" else (),
        disk=cache_disk(deployment),
    )


def _master(
    deployment: DeploymentConfig, image: pulumi.Input[str], secret_files: Collection[str]
) -> Container:
    return Container(
        name="master",
        image=image,
        command=python_module(
            "runner.master",
            *_arguments(MASTER_FILE),
            *("--group-spec", f"{GROUP_FOLDER}/{GROUP_FILE}"),
        ),
        ports={"group": deployment.common_params.master_port, "http": MASTER_HTTP_PORT},
        # Ready is the whole group, or that there is nothing to serve yet; without a stage the
        # master lives and says what is missing.
        probes=http_probes(
            MASTER_HTTP_PORT,
            startup_s=_STARTUP_S,
            readiness_path="/readyz?self",
            liveness=LIVENESS,
        ),
        cpu=deployment.master.cpu,
        memory=deployment.master.memory,
        # Images based on CUDA's ask for every GPU, and the master uses none.
        environment=_environment(deployment, secret_files) | {"NVIDIA_VISIBLE_DEVICES": "void"},
        mounts=(
            *_mounts(deployment, 0),
            config_map_mount(group_spec_name(deployment), GROUP_FOLDER, "group", optional=True),
        ),
    )


def _keeper(
    deployment: DeploymentConfig,
    params: RankParams,
    image: pulumi.Input[str],
    secret_files: Collection[str],
) -> Container:
    """Its probes ask the keeper alone, which lives while its engine dies and starts."""
    assert params.cpu is not None
    assert params.memory is not None
    first, mode = params.rank == 0, deployment.gpu_pinning
    group = ("--group-spec", f"{GROUP_FOLDER}/{GROUP_FILE}") if first else ()
    ports = {"data": STAGE_DATA_PORT}
    ports |= (
        {"group": deployment.common_params.master_port, "http": MASTER_HTTP_PORT}
        if first
        else {"health": STAGE_HEALTH_PORT}
    )
    mounts = [
        *_mounts(deployment, params.rank),
        # What the engine's processes of one rank tell one another.
        memory_mount("shared-memory", "/dev/shm", params.memory // 4),  # noqa: S108
    ]
    if first:
        name = group_spec_name(deployment)
        mounts.append(config_map_mount(name, GROUP_FOLDER, "group", optional=True))
    return Container(
        name="keeper",
        image=image,
        command=python_module("runner.keeper", *_arguments(KEEPER_FILE), *group),
        ports=ports,
        probes=http_probes(
            MASTER_HTTP_PORT if first else STAGE_HEALTH_PORT,
            startup_s=_STARTUP_S,
            readiness_path="/readyz?self" if first else "/readyz",
            liveness=LIVENESS,
        ),
        cpu=params.cpu,
        memory=params.memory,
        environment=_environment(deployment, secret_files)
        | _device_environment(deployment, params),
        mounts=mounts,
        devices={GPU: deployment.devices_per_rank} if mode == "resource" else {},
        claims=(CLAIM,) if mode == "dra" else (),
        disk=cache_disk(deployment),
    )


def _arguments(file: str) -> tuple[str, ...]:
    spec, token = f"{SPEC_FOLDER}/{file}", f"{SECRET_FOLDER}/{GROUP_TOKEN_FILE}"
    return ("--spec", spec, "--token-file", token)


def _environment(deployment: DeploymentConfig, secret_files: Collection[str]) -> dict[str, str]:
    """huggingface_hub keeps its own files beside the weights; extra_env has the last word."""
    # What is only read takes none of them.
    folder = "/tmp" if deployment.model_cache.read_only else CACHE_FOLDER  # noqa: S108 (the pod's own)
    environment = {"HF_HOME": f"{folder}/huggingface"} | bundle_environment(deployment)
    for file, variable in _READ_BY_LIBRARIES.items():
        if file in secret_files:
            environment[variable] = f"{SECRET_FOLDER}/{file}"
    return environment | deployment.extra_env


def _device_environment(deployment: DeploymentConfig, params: RankParams) -> dict[str, str]:
    """What says which GPU; in the modes resource and dra the device's plugin or driver says it."""
    if deployment.gpu_pinning == "none":
        return {"NVIDIA_VISIBLE_DEVICES": "void"}
    if deployment.gpu_pinning != "visible-devices":
        return {}
    return {
        "NVIDIA_VISIBLE_DEVICES": params.nvidia_visible_devices,
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "CUDA_VISIBLE_DEVICES": params.cuda_visible_devices or _all_ordinals(deployment),
        # As nvidia_visible_devices counts; by itself CUDA puts the fastest device first.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def _all_ordinals(deployment: DeploymentConfig) -> str:
    return ",".join(map(str, range(deployment.devices_per_rank)))


def cache_disk(deployment: DeploymentConfig) -> int:
    """Of the node's disk, in bytes: one model's half of the cache. Where there is room for another
    beside it the node has it, and nothing keeps it free for that."""
    cache = deployment.model_cache
    return (cache.size or 0) // 2 if cache.mode == "empty-dir" else 0


def _mounts(deployment: DeploymentConfig, rank: int) -> tuple[Mount, ...]:
    return (
        config_map_mount(deployment.rank_name(rank)),
        secret_mount(rank_secret_name(deployment)),
        _cache_mount(deployment, rank),
        *bundle_mounts(deployment),
    )


def _cache_mount(deployment: DeploymentConfig, rank: int) -> Mount:
    cache = deployment.model_cache
    if cache.mode == "empty-dir":
        return empty_mount(_CACHE, CACHE_FOLDER, cache.size)
    if cache.mode == "host-path":
        return host_mount(_CACHE, cache.host_path, CACHE_FOLDER)
    names = {
        "existing-claim": cache.claim_name,
        "own-claim": model_claim_name(deployment, rank),
        "shared-claim": shared_claim_name(deployment),
    }
    claim = names[cache.mode]
    return claim_mount(
        _CACHE, claim, CACHE_FOLDER, sub_path=cache.sub_path, read_only=cache.read_only
    )


def _resource_claims(deployment: DeploymentConfig, rank: int) -> list[core.PodResourceClaimArgs]:
    if deployment.gpu_pinning != "dra":
        return []
    template = device_claim_name(deployment, rank)
    return [core.PodResourceClaimArgs(name=CLAIM, resource_claim_template_name=template)]
