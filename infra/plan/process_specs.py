"""Deployment + plan + addresses -> the spec file of every process. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from contract.specs import (
    MASTER_HTTP_PORT,
    STAGE_DATA_PORT,
    STAGE_HEALTH_PORT,
    BlockSpec,
    GroupSpec,
    InferenceServerSpec,
    KeeperSpec,
    MasterSpec,
    ProxySpec,
    RankPart,
    SessionsSpec,
    StageSpec,
)
from infra.plan.layers import RankPlan
from infra.stack.config import DeploymentConfig, RankParams
from infra.stack.tier_config import ProxyBlock

# A request in the block protocol's envelope, or with the usage asked for, is a little larger.
ADDED_BODY_BYTES = 64 * 1024


@dataclass(frozen=True)
class StagePorts:
    """Where one stage listens for its predecessor and for health probes."""

    data: int = STAGE_DATA_PORT
    health: int = STAGE_HEALTH_PORT


@dataclass(frozen=True)
class Addresses:
    """Where the processes of one deployment listen and find one another.

    `stages` has one item per rank; `block_urls` maps a block id to its proxy block's URL and
    `block_ports` to the port that it listens on.
    """

    master_host: str
    master_port: int
    master_url: str
    stages: tuple[StagePorts, ...]
    block_urls: Mapping[str, str]
    block_ports: Mapping[str, int]
    inference_port: int
    bind_address: str = ""
    http_port: int = MASTER_HTTP_PORT


def group_spec(
    deployment: DeploymentConfig, plan: Sequence[RankPlan], *, commit: str = ""
) -> GroupSpec:
    """What the group is to serve; `commit` pins the model for all ranks."""
    common = deployment.common_params
    on_cpu = deployment.gpu_pinning == "none"
    return GroupSpec(
        deployment_name=deployment.deployment_name,
        model_name=common.model_name,
        model_revision=commit or common.named_revision,
        ranks=tuple(
            RankPart(
                item.layers,
                None if on_cpu else deployment.rank_params(item.rank).device_memory,
            )
            for item in plan
        ),
        dtype=common.dtype,
        max_model_len=common.max_model_len,
        max_concurrent_requests=common.max_concurrent_requests,
        prefill_token_budget=common.prefill_token_budget,
        request_deadline_s=common.request_deadline_s,
        load_timeout_s=common.load_timeout_s,
        swap_drain_s=deployment.timeouts.swap_drain_s,
    )


def master_spec(
    deployment: DeploymentConfig,
    addresses: Addresses,
    *,
    model_cache: str = MasterSpec.model_cache,
) -> MasterSpec:
    """The file of the master, whatever the group serves."""
    return MasterSpec(
        deployment_name=deployment.deployment_name,
        bind_address=addresses.bind_address,
        master_port=addresses.master_port,
        http_port=addresses.http_port,
        model_cache=model_cache,
        stall_s=deployment.timeouts.stall_s,
    )


def stage_spec(
    deployment: DeploymentConfig,
    params: RankParams,
    addresses: Addresses,
    *,
    model_cache: str = StageSpec.model_cache,
) -> StageSpec:
    """The file of one rank, whatever the group serves."""
    on_cpu = deployment.gpu_pinning == "none"
    ports = addresses.stages[params.rank]
    return StageSpec(
        deployment_name=deployment.deployment_name,
        rank=params.rank,
        master_host=addresses.master_host,
        master_port=addresses.master_port,
        bind_address=addresses.bind_address,
        # Every mode of pinning shows a stage the one device that it uses.
        device="cpu" if on_cpu else "cuda:0",
        threads=None if params.cpu is None else max(1, int(params.cpu)),
        memory_bytes=params.memory if on_cpu else None,
        interface=params.nccl_socket_ifname,
        advertise_address=params.advertise_address,
        data_port=ports.data,
        health_port=ports.health,
        node=params.node_id,
        visible_devices=params.nvidia_visible_devices or params.device_uuid,
        model_cache=model_cache,
        # An empty-dir's pod is evicted with more in it, and nobody else uses it.
        cache_for_two=bool(model_cache) and deployment.model_cache.mode == "empty-dir",
        stall_s=deployment.timeouts.stall_s,
    )


def keeper_spec(
    deployment: DeploymentConfig,
    params: RankParams,
    addresses: Addresses,
    *,
    model_cache: str = KeeperSpec.model_cache,
    engine: str = KeeperSpec.engine,
    engine_cache: str = KeeperSpec.engine_cache,
    niceness: int = KeeperSpec.niceness,
    whole_shm: bool = KeeperSpec.whole_shm,
) -> KeeperSpec:
    """The file of one rank of another engine, whatever the group serves. The engine's own API has
    the port that rank 0's stage would have for its health."""
    common = deployment.common_params
    on_cpu = deployment.gpu_pinning == "none"
    ports = addresses.stages[params.rank]
    first = params.rank == 0
    return KeeperSpec(
        deployment_name=deployment.deployment_name,
        rank=params.rank,
        master_host=addresses.master_host,
        master_port=addresses.master_port,
        bind_address=addresses.bind_address,
        http_port=addresses.http_port if first else ports.health,
        engine_port=addresses.stages[0].health,
        meeting_port=addresses.stages[0].data,
        device="cpu" if on_cpu else "cuda",
        threads=None if params.cpu is None else max(1, int(params.cpu)),
        memory_bytes=params.memory if on_cpu else None,
        interface=params.nccl_socket_ifname,
        node=params.node_id,
        visible_devices=params.nvidia_visible_devices or params.device_uuid,
        model_cache=model_cache,
        cache_for_two=bool(model_cache) and deployment.model_cache.mode == "empty-dir",
        stall_s=deployment.timeouts.stall_s,
        tensor_parallel=common.tensor_parallel,
        gpu_memory_utilization=common.gpu_memory_utilization,
        extra_engine_args=tuple(common.extra_engine_args),
        engine=engine,
        engine_cache=engine_cache,
        niceness=niceness,
        whole_shm=whole_shm,
    )


def proxy_spec(
    deployment: DeploymentConfig,
    block: ProxyBlock,
    addresses: Addresses,
    *,
    sessions_path: str = SessionsSpec.path,
    sessions_url: str = SessionsSpec.url,
) -> ProxySpec:
    """The file of one proxy block; `sessions_path` or `sessions_url` is where histories are."""
    return ProxySpec(
        block_id=block.block_id,
        deployment_name=deployment.deployment_name,
        upstream_url=addresses.master_url,
        component=block.component,
        labels=dict(block.labels),
        system_message=block.system_message,
        generation_config=block.generation_config.model_dump(exclude_none=True),
        chat_template_kwargs=dict(block.chat_template_kwargs),
        sessions=SessionsSpec(
            path=sessions_path,
            url=sessions_url,
            max_turns=block.sessions.max_turns,
            max_tokens=block.sessions.max_tokens,
            max_age_s=block.sessions.max_age_s,
        ),
        bind_address=addresses.bind_address,
        port=addresses.block_ports[block.block_id],
        request_deadline_s=deployment.common_params.request_deadline_s,
        # What the inference server takes, a block takes from it, and what that adds.
        max_body_bytes=deployment.inference_server.max_body_bytes + ADDED_BODY_BYTES,
    )


def inference_server_spec(
    deployment: DeploymentConfig,
    addresses: Addresses,
    *,
    discovery_namespace: str = "",
    request_log_path: str = "",
) -> InferenceServerSpec:
    """The file of the inference server.

    Without `discovery_namespace` it has the static table of this deployment's blocks.
    `request_log_path` is where the request log lies if there is to be one.
    """
    server = deployment.inference_server
    blocks = () if discovery_namespace else deployment.proxy_blocks
    return InferenceServerSpec(
        deployment_name=deployment.deployment_name,
        blocks=tuple(
            BlockSpec(
                block_id=block.block_id,
                url=addresses.block_urls[block.block_id],
                component=block.component,
                labels=dict(block.labels),
            )
            for block in blocks
        ),
        bind_address=addresses.bind_address,
        port=addresses.inference_port,
        request_deadline_s=deployment.common_params.request_deadline_s,
        max_body_bytes=server.max_body_bytes,
        discovery_namespace=discovery_namespace,
        request_log_path=request_log_path if server.request_log.enabled else "",
        request_log_rows=server.request_log.rows,
        log_texts=server.request_log.texts,
        cors_origins=tuple(server.cors_origins),
        aliases={name: dict(shares) for name, shares in server.aliases.items()},
    )
