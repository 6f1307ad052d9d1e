"""`splitstack repair`: pods that nobody takes away, and that are in the way of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kubernetes import client

from infra.cluster.fit import rank_clusters
from infra.cluster.labels import COMPONENT, RANK, ROLLOUT
from infra.inspection.client import REQUEST_TIMEOUT, ClusterClient, open_cluster
from infra.inspection.diagnosis import Pod, condition
from infra.inspection.own_pods import own_pods
from infra.stack.config import DeploymentConfig

_NOT_FOUND = 404


@dataclass(frozen=True)
class Repair:
    """One pod to delete. `forced`: without its kubelet's word, which nobody will hear."""

    cluster: ClusterClient
    namespace: str
    pod: str
    why: str
    forced: bool = False

    def __str__(self) -> str:
        return f"delete pod {self.namespace}/{self.pod}: {self.why}"

    def do(self) -> None:
        """Raises ClusterError. A pod that has gone meanwhile is as wanted."""
        core = client.CoreV1Api(self.cluster.api)
        with self.cluster.asked_to(f"delete pod {self.pod} in namespace {self.namespace}"):
            try:
                core.delete_namespaced_pod(
                    self.pod,
                    self.namespace,
                    grace_period_seconds=0 if self.forced else None,
                    _request_timeout=REQUEST_TIMEOUT,
                )
            except client.ApiException as error:
                if error.status != _NOT_FOUND:
                    raise


def find_repairs(deployment: DeploymentConfig) -> list[Repair]:
    """Of every cluster of a stack, nothing done yet. Raises ClusterError."""
    found: list[Repair] = []
    for cluster_id in rank_clusters(deployment):
        cluster = open_cluster(deployment, cluster_id)
        core = client.CoreV1Api(cluster.api)
        with cluster.asked_to("list nodes"):
            listed: Any = core.list_node(_request_timeout=REQUEST_TIMEOUT)
        nodes = {node.metadata.name: node for node in listed.items}
        for pod in own_pods(cluster, deployment):
            for why, forced in _reasons(deployment, pod, nodes):
                name, namespace = pod.metadata.name, pod.metadata.namespace
                found.append(Repair(cluster, namespace, name, why, forced))
    return found


def _reasons(
    deployment: DeploymentConfig, pod: Pod, nodes: Mapping[str, Any]
) -> Iterator[tuple[str, bool]]:
    """(why, forced) for a pod that is to go; at most one. A rollout's keeps its reason until the
    next one."""
    if pod.metadata.labels.get(COMPONENT) == ROLLOUT:
        return
    rank = pod.metadata.labels.get(RANK, "")
    node = pod.spec.node_name
    if node and (pod.metadata.deletion_timestamp or not _owned(pod)) and node not in nodes:
        yield f"its node {node} is gone, and nobody there ends it", True
    elif pod.metadata.deletion_timestamp:
        if node and not _answers(nodes[node]):
            yield (
                f"it is to end, and node {node} does not answer (if that node still runs, so does "
                "the pod until the node is back or off)",
                True,
            )
    elif pod.status.phase == "Failed":
        yield f"it has failed ({pod.status.reason or 'its containers ended'}) and stays so", False
    elif rank.isdecimal() and int(rank) >= deployment.nnodes and not _owned(pod):
        yield f"it is rank {rank}, and nnodes is {deployment.nnodes}", False


def _owned(pod: Pod) -> bool:
    """Whether a controller makes another one where it goes."""
    return bool(pod.metadata.owner_references)


def _answers(node: Any) -> bool:
    ready = condition(node, "Ready")
    return ready is not None and ready.status != "Unknown"
