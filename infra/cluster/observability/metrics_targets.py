"""Which ports of which pods of a stack have metrics. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from contract.specs import INFERENCE_PORT, MASTER_HTTP_PORT, STAGE_HEALTH_PORT
from infra.cluster import labels
from infra.cluster.fit import rank_clusters
from infra.stack.config import DeploymentConfig

PATH = "/metrics"


@dataclass(frozen=True)
class MetricsTarget:
    """Pods that `selected` picks in one namespace of one cluster; `port` is the container's."""

    name: str
    component: str
    cluster: str
    namespace: str
    selected: dict[str, str]
    port: int


def metrics_targets(deployment: DeploymentConfig) -> Iterator[MetricsTarget]:
    """Master, stages in each cluster, proxy blocks and inference server."""
    home = deployment.cluster_of(0)
    yield _ranks(deployment, "master", home, MASTER_HTTP_PORT, rank=0)
    for cluster in rank_clusters(deployment):
        yield _ranks(deployment, "stages", cluster, STAGE_HEALTH_PORT)
    for index, block in enumerate(deployment.proxy_blocks):
        yield MetricsTarget(
            f"block-{index}",  # with its id a name could be too long for a Service
            labels.PROXY_BLOCK,
            home,
            deployment.namespaces.blocks,
            labels.selector(deployment, labels.PROXY_BLOCK, block_id=block.block_id),
            block.port,
        )
    if deployment.inference_server.enabled:
        yield MetricsTarget(
            "server",
            labels.INFERENCE_SERVER,
            home,
            deployment.namespaces.inference_server,
            labels.selector(deployment, labels.INFERENCE_SERVER),
            INFERENCE_PORT,
        )


def _ranks(
    deployment: DeploymentConfig, name: str, cluster: str, port: int, rank: int | None = None
) -> MetricsTarget:
    selected = labels.selector(deployment, labels.RANK_COMPONENT, rank)
    namespace = deployment.namespace
    return MetricsTarget(name, labels.RANK_COMPONENT, cluster, namespace, selected, port)
