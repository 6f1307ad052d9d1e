"""The typed stack file: every key under `splitstack:deployment`, its default and its meaning.

The only place with defaults; what the process contract defaults already is taken from there.
Rules that join several keys are in `rules`, the JSON Schema in `reference`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from contract.specs import RANK_MASTER_PORT, STALL_S, GroupSpec
from infra.stack import types
from infra.stack.tier_config import (
    InferenceServer,
    NetworkPolicies,
    Observability,
    ProxyBlock,
    SessionStore,
)

DEPLOYMENT_KEY = "splitstack:deployment"
CacheMode = Literal["empty-dir", "existing-claim", "own-claim", "shared-claim", "host-path"]
GpuPinning = Literal["visible-devices", "resource", "dra", "none"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class CommonParams(types.Section):
    """What all ranks share."""

    model_name: types.NonEmptyText
    """Hub id, folder, https:// address of a folder, or `demo:smollm2-135m-instruct`."""
    image: types.Image = ""
    """Runner image: where it is pushed (builder docker) or its digest reference."""
    master_port: types.Port = RANK_MASTER_PORT
    """Port on which the master waits for stages."""
    model_revision: types.Text = GroupSpec.model_revision
    """Branch, tag or commit of a hub id, digest of an address; empty: main, what it is now."""
    dtype: Dtype = "auto"
    """Type of weights and KV; auto: the checkpoint's on GPUs, float32 on CPU."""
    max_model_len: types.Positive | None = None
    """Longest prompt + answer, in tokens; null: the model's own maximum."""
    max_concurrent_requests: types.Positive = GroupSpec.max_concurrent_requests
    """Requests that generate at the same time."""
    request_deadline_s: types.Seconds = GroupSpec.request_deadline_s
    """Seconds after which a request is ended."""
    load_timeout_s: types.Seconds = 1800.0
    """Seconds that a stage may take to fetch and load its weights."""
    prefill_token_budget: types.Positive = GroupSpec.prefill_token_budget
    """Prompt tokens per step: longer prompts are prefilled in chunks."""

    @property
    def named_revision(self) -> str:
        """`model_revision`; "" for the main branch, however it is given."""
        return "" if self.model_revision == "main" else self.model_revision


class RankParams(types.Section):
    """What one rank has of its own."""

    rank: Annotated[types.Integer, Field(ge=0)]
    """Which rank this is: 0 to nnodes - 1."""
    node_id: types.Node = ""
    """Node that runs it (its kubernetes.io/hostname)."""
    cluster_id: types.OptionalLabel = ""
    """Cluster that runs it; empty: rank_0_cluster_id for rank 0, else the first cluster."""
    nccl_socket_ifname: types.Interface = ""
    """Network interface for the other ranks; empty: the route to the master."""
    nvidia_visible_devices: types.Devices = ""
    """Physical devices that the container sees (gpu_pinning visible-devices)."""
    cuda_visible_devices: types.Ordinals = ""
    """The one CUDA ordinal, counted within the visible devices, that the stage uses."""
    layers: types.Layers = ""
    """Decoder layers "first-last", both inclusive, as in "0-7"; empty: planned."""
    device_memory: types.Bytes | None = None
    """What it may use of its GPU, as in "24Gi"; null: not checked, 9/10 of what is free."""
    device_uuid: types.Devices = ""
    """UUID of its GPU (gpu_pinning dra)."""
    cpu: types.Cores | None = None
    """CPU cores: the container's limit and the stage's threads; null: the machine's share, or 2."""
    memory: types.Bytes | None = None
    """Main memory: the container's limit; null: not checked, in a cluster weights + 6 Gi."""
    advertise_address: types.Address = ""
    """Address at which the other ranks reach it; empty: its own."""

    @property
    def layer_range(self) -> tuple[int, int] | None:
        """[first, one past last], or None where the layers are to be planned."""
        if not self.layers:
            return None
        first, _, last = self.layers.partition("-")
        return int(first), int(last or first) + 1

    @property
    def physical_device(self) -> str:
        """The device of nvidia_visible_devices that the stage uses; "" without devices."""
        devices = self.nvidia_visible_devices.split(",")
        ordinal = int(self.cuda_visible_devices.split(",")[0] or 0)
        return devices[ordinal] if ordinal < len(devices) else ""


class Images(types.Section):
    """Where images come from. The local stack uses none."""

    builder: Literal["docker", "reference"] = "docker"
    """docker builds and pushes; reference takes images as given, by digest."""
    proxy_block: types.Image = ""
    """Proxy block image; empty with builder docker: beside common_params.image."""
    inference_server: types.Image = ""
    """Inference server image; empty with builder docker: beside common_params.image."""
    platform: types.Text = ""
    """What builder docker builds for, as in linux/amd64; empty: this machine's architecture."""
    build_arguments: dict[types.EnvironmentName, types.Text] = Field(default_factory=dict)
    """Build arguments of the Dockerfiles: BASE_IMAGE, TORCH, TORCH_INDEX, DEMO_MODEL, ..."""


class Cluster(types.Section):
    """How a cluster is reached."""

    kubeconfig: types.Text = ""
    """Path of its kubeconfig file; empty: the default one."""
    context: types.Text = ""
    """Context in that file; empty: its current one."""


class Namespaces(types.Section):
    """Namespaces beside `namespace`, which the ranks are in."""

    create: bool = True
    """Whether this stack creates them; a second stack on a cluster says false."""
    blocks: types.Label = "blocks"
    """Namespace of the proxy blocks."""
    inference_server: types.Label = "inference-server"
    """Namespace of the inference server."""


class Timeouts(types.Section):
    """How long a deployment waits for an object."""

    create_s: types.Seconds | None = None
    """Seconds for a rank or tier to get ready; null: load_timeout_s + 300."""
    stall_s: types.Seconds = STALL_S
    """Seconds without a byte or a step after which bringing a model in is given up."""
    delete_s: types.Seconds = 300
    """Seconds for an object to go, beyond the time in which it drains."""


class ModelCache(types.Section):
    """Where ranks in a cluster keep downloaded weights."""

    mode: CacheMode = "empty-dir"
    """empty-dir lives as long as its pod; own-claim, one a rank, and shared-claim as the stack."""
    claim_name: types.OptionalLabel = ""
    """The existing claim."""
    sub_path: types.RelativePath = ""
    """Folder in the existing claim; empty: all of it."""
    read_only: bool = False
    """Whether the existing claim is only read: it has the model."""
    host_path: types.AbsolutePath = ""
    """Folder of every node (mode host-path)."""
    size: types.Bytes | None = None
    """Size of a claim; of an empty-dir its limit, half of it requested; null there: planned."""
    storage_class: types.ClassName = ""
    """Storage class of our own claims; empty: the cluster's default."""


class Toleration(types.Section):
    """One toleration of the rank pods, as in Kubernetes."""

    key: types.Key = ""
    """Taint key; empty with operator Exists: every taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """How key and value are compared."""
    value: types.Text = ""
    """Taint value."""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    """Taint effect; empty: every effect."""


_EMPTY_CLUSTERS = BeforeValidator(
    lambda value: (
        {name: item if item is not None else {} for name, item in value.items()}
        if isinstance(value, dict)
        else value
    )
)


class DeploymentConfig(types.Section):
    """One split model with its tiers."""

    deployment_name: types.Name
    """Prefix of every name."""
    nnodes: types.WorldSize
    """World size: the number of ranks."""
    common_params: CommonParams
    """What all ranks share."""
    per_rank_params: list[RankParams] = Field(default_factory=list)
    """What single ranks have of their own; unlisted ranks take the defaults."""
    rank_0_cluster_id: types.OptionalLabel = ""
    """Cluster of rank 0, the proxy blocks and the inference server."""
    cluster_id: types.LabelList = Field(default_factory=list)
    """Clusters that ranks are on."""
    multi_cluster: bool = False
    """Whether ranks are on several clusters."""
    routable_pod_addresses: bool = False
    """With multi_cluster: pods reach one another's addresses across clusters."""
    platform: Literal["torch"] = "torch"
    """The engine of the ranks."""
    namespace: types.Label = "splits"
    """Namespace of the ranks."""
    gpu_pinning: GpuPinning = "none"
    """How a rank gets its GPU; none: ranks compute on CPU."""
    runtime_class: types.OptionalLabel = "nvidia"
    """runtimeClassName of rank pods with gpu_pinning visible-devices."""
    workload: Literal["pod", "statefulset"] = "statefulset"
    """What a rank is: a set that brings its pod NAME-rank-0-0 back, or a bare pod NAME-rank-0."""
    images: Images = Images()
    """Where images come from."""
    proxy_blocks: list[ProxyBlock] = Field(default_factory=list)
    """Blocks in front of rank 0."""
    inference_server: InferenceServer = InferenceServer()
    """The public API."""
    clusters: Annotated[dict[types.Label, Cluster], _EMPTY_CLUSTERS] = Field(default_factory=dict)
    """Cluster id -> how it is reached; `pulumi up` needs them, one machine does not."""
    namespaces: Namespaces = Namespaces()
    """Namespaces of the other tiers."""
    timeouts: Timeouts = Timeouts()
    """How long a deployment waits."""
    model_cache: ModelCache = ModelCache()
    """Where weights are kept in a cluster."""
    session_store: SessionStore = SessionStore()
    """Where histories are kept in a cluster."""
    network_policies: NetworkPolicies = NetworkPolicies()
    """Who may reach whom."""
    observability: Observability = Observability()
    """What Prometheus and Grafana find."""
    extra_env: dict[types.EnvironmentName, types.Text] = Field(default_factory=dict)
    """Environment variables of every stage; in a cluster of the master too."""
    tolerations: list[Toleration] = Field(default_factory=list)
    """Tolerations of the rank pods."""
    priority_class: types.OptionalLabel = ""
    """priorityClassName of the rank pods."""
    image_pull_secrets: list[types.Label] = Field(default_factory=list)
    """Names of Secrets with registry credentials."""

    def rank_params(self, rank: int) -> RankParams:
        """The parameters of a rank, listed or not."""
        for params in self.per_rank_params:
            if params.rank == rank:
                return params
        return RankParams(rank=rank)

    @property
    def ranks(self) -> tuple[RankParams, ...]:
        """The parameters of every rank, in order."""
        return tuple(self.rank_params(rank) for rank in range(self.nnodes))

    def cluster_of(self, rank: int) -> str:
        """The cluster of a rank; "" where the file names none."""
        own = self.rank_params(rank).cluster_id
        first = next(iter([*self.cluster_id, *self.clusters]), "")
        return own or (self.rank_0_cluster_id if rank == 0 else "") or first

    def rank_name(self, rank: int) -> str:
        return f"{self.deployment_name}-rank-{rank}"

    @property
    def rank_master_name(self) -> str:
        return f"{self.deployment_name}-rank-master"

    @property
    def master_api_name(self) -> str:
        return f"{self.deployment_name}-master-api"

    @property
    def inference_server_name(self) -> str:
        return f"{self.deployment_name}-inference-server"

    @property
    def session_store_name(self) -> str:
        return f"{self.deployment_name}-session-store"

    @property
    def rollout_name(self) -> str:
        return f"{self.deployment_name}-rollout"

    def proxy_name(self, block_id: str) -> str:
        return f"{self.deployment_name}-proxy-{block_id}"
