"""The typed stack file: every key under `splitstack:deployment`, its default and its meaning.

The only place with defaults; what the process contract defaults already is taken from there.
Rules that join several keys are in `rules`, the JSON Schema in `reference`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from contract.specs import RANK_MASTER_PORT, GroupSpec, KeeperSpec
from infra.stack import types
from infra.stack.cluster_config import (
    CaBundle,
    Cluster,
    Images,
    ModelCache,
    Namespaces,
    Timeouts,
)
from infra.stack.placement_config import NodeChoice, Placement, Toleration
from infra.stack.pod_config import Pods, PodTemplate
from infra.stack.tier_config import (
    InferenceServer,
    NetworkPolicies,
    Observability,
    ProxyBlock,
    SessionStore,
)

DEPLOYMENT_KEY = "splitstack:deployment"
GpuPinning = Literal["visible-devices", "resource", "dra", "none"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class CommonParams(types.Section):
    """What all ranks share."""

    model_name: types.NonEmptyText
    """Hub id, folder, https:// or s3:// address of one, or `demo:smollm2-135m-instruct`."""
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
    load_timeout_s: types.Seconds | None = GroupSpec.load_timeout_s
    """Seconds that a rank may take to fetch or to load its part; null: as long as bytes come."""
    prefill_token_budget: types.Positive = GroupSpec.prefill_token_budget
    """Prompt tokens per step: longer prompts are prefilled in chunks."""
    tensor_parallel: types.Positive = KeeperSpec.tensor_parallel
    """Devices of each rank that share its layers (platform vllm)."""
    gpu_memory_utilization: types.Share01 | None = KeeperSpec.gpu_memory_utilization
    """Share of a GPU's memory that the engine takes (platform vllm); null: the engine's own."""
    extra_engine_args: list[types.NonEmptyText] = Field(default_factory=list)
    """Further arguments of `vllm serve` (platform vllm), as in ["--kv-cache-dtype", "fp8"]."""

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
    """The one CUDA ordinal, counted within the visible devices, that the stage uses; with
    tensor_parallel all of its rank's, empty: every visible one."""
    layers: types.Layers = ""
    """Decoder layers "first-last", both inclusive, as in "0-7"; empty: planned."""
    speed: types.Speed | None = None
    """How fast it is beside the other ranks, as in 0.5: planned layers are cut by it; null: its
    cores on CPUs, else 1. `splitstack status` tells measured ones."""
    device_memory: types.Bytes | None = None
    """What it may use of its GPU, as in "24Gi"; null: not checked, 9/10 of what is free."""
    device_uuid: types.Devices = ""
    """UUID of its GPU (gpu_pinning dra)."""
    device_class: types.ClassName = ""
    """DeviceClass of its device, as in mig.nvidia.com (gpu_pinning dra); empty: gpu.nvidia.com."""
    device_selectors: list[types.NonEmptyText] = Field(default_factory=list)
    """CEL expressions that hold for its device (gpu_pinning dra)."""
    placement: NodeChoice = NodeChoice()
    """Nodes that may run it, on top of the placement of all ranks."""
    cpu: types.Cores | None = None
    """CPU cores: the container's limit and the stage's threads; null: the machine's share, or 1."""
    memory: types.Bytes | None = None
    """Main memory: the container's limit; null: not checked, in a cluster planned."""
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

    @property
    def physical_devices(self) -> tuple[str, ...]:
        """Those that an engine of several devices uses: without ordinals all that are visible."""
        devices = [item for item in self.nvidia_visible_devices.split(",") if item]
        ordinals = [int(item) for item in self.cuda_visible_devices.split(",") if item]
        chosen = ordinals or range(len(devices))
        return tuple(devices[ordinal] for ordinal in chosen if ordinal < len(devices))


class Master(types.Section):
    """The container beside rank 0's stage that talks to the others and answers requests."""

    cpu: types.Cores = 1.0
    """CPU cores: request and limit."""
    memory: types.Bytes = 2**30
    """Main memory: request and limit."""


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
    master: Master = Master()
    """The master, in rank 0's pod."""
    rank_0_cluster_id: types.OptionalLabel = ""
    """Cluster of rank 0, the proxy blocks and the inference server."""
    cluster_id: types.LabelList = Field(default_factory=list)
    """Clusters that ranks are on."""
    multi_cluster: bool = False
    """Whether ranks are on several clusters."""
    routable_pod_addresses: bool = False
    """With multi_cluster: pods reach one another's addresses across clusters."""
    platform: Literal["torch", "vllm"] = "torch"
    """The engine of the ranks: our own on torch and transformers, or vLLM's."""
    namespace: types.Label = "splits"
    """Namespace of the ranks."""
    gpu_pinning: GpuPinning = "none"
    """How a rank gets its GPU; none: ranks compute on CPU."""
    runtime_class: types.OptionalLabel | None = None
    """runtimeClassName of rank pods; null: nvidia with gpu_pinning visible-devices, else none."""
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
    protect: bool = False
    """Whether no `destroy` and no edit deletes its namespaces, claim of histories, shared cache."""
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
    ca_bundle: CaBundle = CaBundle()
    """Whom ranks trust, and proxy blocks with a session store elsewhere; empty: the image's own."""
    extra_env: dict[types.EnvironmentName, types.Text] = Field(default_factory=dict)
    """Environment variables of every stage; in a cluster of the master too."""
    placement: Placement = Placement()
    """Nodes that may run the ranks."""
    tolerations: list[Toleration] = Field(default_factory=list)
    """Tolerations of the rank pods."""
    pod_template: PodTemplate = PodTemplate()
    """What the rank pods have beside their own."""
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

    @property
    def devices_per_rank(self) -> int:
        """One, but with platform vllm as many as share a rank's layers."""
        return self.common_params.tensor_parallel if self.platform == "vllm" else 1

    def node_choice(self, rank: int) -> NodeChoice:
        """Where a rank may run: what holds for all of them, and its own."""
        common, own = self.placement, self.rank_params(rank).placement
        return NodeChoice(
            node_selector=common.node_selector | own.node_selector,
            node_affinity=[*common.node_affinity, *own.node_affinity],
        )

    @property
    def tiers(self) -> dict[str, Pods]:
        """What the tiers around the ranks say of their pods, by the key of each."""
        blocks = {f"proxy_blocks[{index}]": it for index, it in enumerate(self.proxy_blocks)}
        return {
            **blocks,
            "inference_server": self.inference_server,
            "session_store": self.session_store,
        }

    @property
    def has_valkey(self) -> bool:
        """Whether a session store of its own is made: it is the blocks'."""
        return bool(self.proxy_blocks) and self.session_store.mode == "valkey"

    @property
    def rank_runtime_class(self) -> str:
        """`runtime_class` with its default; "" for the cluster's own."""
        if self.runtime_class is None:
            return "nvidia" if self.gpu_pinning == "visible-devices" else ""
        return self.runtime_class

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
