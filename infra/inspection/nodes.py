"""Whether the nodes that a stack names are there, take its pods, and have what ranks ask for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from kubernetes import client
from kubernetes.utils.quantity import parse_quantity

from infra.cluster.labels import HOSTNAME, INSTANCE
from infra.cluster.rank_pod import GPU, MASTER_CORES, MASTER_MEMORY
from infra.inspection.client import REQUEST_TIMEOUT, ClusterClient, Finding
from infra.stack.config import DeploymentConfig, RankParams

_FORBIDDEN, _NOT_FOUND = 403, 404
_REPELLING = ("NoSchedule", "NoExecute")
# The kubelet's own of a node that is not ready or cordoned, which are told in words.
_OWN_TAINTS = "node.kubernetes.io/"
_SHOWN = 8


def check_nodes(cluster: ClusterClient, deployment: DeploymentConfig) -> Iterator[Finding]:
    """For the ranks of this cluster. `deployment` is fitted: each rank names cores and memory."""
    core = client.CoreV1Api(cluster.api)
    ranks = [
        item for item in deployment.ranks if deployment.cluster_of(item.rank) == cluster.cluster_id
    ]
    with cluster.asked_to("list nodes"):
        try:
            listed: Any = core.list_node(_request_timeout=REQUEST_TIMEOUT)
        except client.ApiException as error:
            if error.status != _FORBIDDEN:
                raise
            text = "you may not list nodes: nodes and devices were not checked"
            yield cluster.finding("warning", text)
            return
        nodes = {(node.metadata.labels or {}).get(HOSTNAME, ""): node for node in listed.items}
        for text in _faults(core, deployment, ranks, nodes):
            yield cluster.finding("fault", text)
        if deployment.gpu_pinning == "dra":
            yield from _check_claims(cluster, ranks)


def _faults(
    core: client.CoreV1Api,
    deployment: DeploymentConfig,
    ranks: Sequence[RankParams],
    nodes: dict[str, Any],
) -> Iterator[str]:
    on_node: dict[str, list[RankParams]] = defaultdict(list)
    for params in ranks:
        on_node[params.node_id].append(params)
    anywhere = on_node.pop("", [])
    if anywhere and not any(not _refusals(deployment, node) for node in nodes.values()):
        yield f"no node takes {_names(anywhere)}: {_why_none(deployment, nodes)}"
    for name, placed in on_node.items():
        if name not in nodes:
            known = ", ".join(sorted(nodes)[:_SHOWN]) or "none"
            yield f"node {name} of {_names(placed)} does not exist ({HOSTNAME}: {known})"
            continue
        refusals = _refusals(deployment, nodes[name])
        if refusals:
            yield f"node {name} does not take {_names(placed)}: {', '.join(refusals)}"
        yield from _shortages(core, deployment, placed, nodes[name])


def _refusals(deployment: DeploymentConfig, node: Any) -> list[str]:
    """Why the scheduler would put no rank there; empty where it would."""
    found = []
    ready = next((item for item in node.status.conditions or [] if item.type == "Ready"), None)
    if ready is None or ready.status != "True":
        found.append("it is not ready")
    if node.spec.unschedulable:
        found.append("it is cordoned")
    for taint in node.spec.taints or []:
        own = taint.key.startswith(_OWN_TAINTS)
        if taint.effect in _REPELLING and not own and not _is_tolerated(deployment, taint):
            value = f"={taint.value}" if taint.value else ""
            found.append(f"taint {taint.key}{value}:{taint.effect} is not in tolerations")
    return found


def _is_tolerated(deployment: DeploymentConfig, taint: Any) -> bool:
    return any(
        item.effect in ("", taint.effect)
        and (item.key == taint.key or (not item.key and item.operator == "Exists"))
        and (item.operator == "Exists" or item.value == (taint.value or ""))
        for item in deployment.tolerations
    )


def _why_none(deployment: DeploymentConfig, nodes: dict[str, Any]) -> str:
    if not nodes:
        return "the cluster has no nodes"
    reasons = [f"{name}: {', '.join(_refusals(deployment, node))}" for name, node in nodes.items()]
    return "; ".join(reasons[:_SHOWN])


def _shortages(
    core: client.CoreV1Api, deployment: DeploymentConfig, placed: Sequence[RankParams], node: Any
) -> Iterator[str]:
    """What the ranks of a node ask for together, against what others leave of it."""
    name = node.metadata.name
    asked = {
        "cpu": sum((Decimal(str(params.cpu or 0)) for params in placed), Decimal(0)),
        "memory": Decimal(sum(params.memory or 0 for params in placed)),
    }
    if any(params.rank == 0 for params in placed):
        asked["cpu"] += Decimal(str(MASTER_CORES))
        asked["memory"] += MASTER_MEMORY
    if deployment.gpu_pinning == "resource":
        asked[GPU] = Decimal(len(placed))
    allocatable = {
        resource: _amount((node.status.allocatable or {}).get(resource, "0")) for resource in asked
    }
    taken = _taken_by_others(core, deployment, name)
    for resource, amount in asked.items():
        left = allocatable[resource] - taken[resource]
        if amount > left:
            asks = "asks" if len(placed) == 1 else "together ask"
            yield (
                f"node {name} has {_shown(resource, left)} left of "
                f"{_shown(resource, allocatable[resource])} {resource}, and {_names(placed)} "
                f"{asks} for {_shown(resource, amount)}"
            )


def _taken_by_others(
    core: client.CoreV1Api, deployment: DeploymentConfig, node: str
) -> dict[str, Decimal]:
    """What pods that are not of this deployment have asked for; nothing where it is not told."""
    taken: dict[str, Decimal] = defaultdict(Decimal)
    chosen = f"spec.nodeName={node},status.phase!=Succeeded,status.phase!=Failed"
    try:
        pods: Any = core.list_pod_for_all_namespaces(
            field_selector=chosen, _request_timeout=REQUEST_TIMEOUT
        )
    except client.ApiException as error:
        if error.status != _FORBIDDEN:
            raise
        return taken
    for pod in pods.items:
        if (pod.metadata.labels or {}).get(INSTANCE) == deployment.deployment_name:
            continue
        for container in pod.spec.containers:
            requests = (container.resources and container.resources.requests) or {}
            for resource, amount in requests.items():
                taken[resource] += _amount(amount)
    return taken


def _check_claims(cluster: ClusterClient, ranks: Sequence[RankParams]) -> Iterator[Finding]:
    """Whether the driver publishes the devices that ranks claim by UUID."""
    api = client.ResourceV1Api(cluster.api)
    try:
        slices: Any = api.list_resource_slice(_request_timeout=REQUEST_TIMEOUT)
    except client.ApiException as error:
        if error.status not in (_FORBIDDEN, _NOT_FOUND):
            raise
        text = "cannot list resourceslices.resource.k8s.io: gpu_pinning dra needs Kubernetes 1.34"
        yield cluster.finding("warning", text)
        return
    node_of = {
        device.attributes["uuid"].string: piece.spec.node_name
        for piece in slices.items
        for device in piece.spec.devices or []
        if "uuid" in (device.attributes or {})
    }
    for params in ranks:
        uuid, name = params.device_uuid, f"rank {params.rank}"
        if uuid not in node_of:
            known = ", ".join(sorted(node_of)[:_SHOWN]) or "none"
            text = f"no driver publishes device {uuid} of {name} (published: {known})"
            yield cluster.finding("fault", text)
        elif params.node_id and node_of[uuid] != params.node_id:
            text = f"device {uuid} of {name} is on node {node_of[uuid]}, not on {params.node_id}"
            yield cluster.finding("fault", text)


def _amount(quantity: str) -> Decimal:
    return Decimal(str(parse_quantity(quantity)))  # type: ignore[no-untyped-call]


def _names(ranks: Sequence[RankParams]) -> str:
    word = "rank" if len(ranks) == 1 else "ranks"
    return f"{word} {', '.join(str(params.rank) for params in ranks)}"


def _shown(resource: str, amount: Decimal) -> str:
    if resource == "memory":
        return f"{amount / 2**30:.1f} GiB"
    return f"{amount.normalize():f}"
