"""Whether the nodes that a stack names are there, take its pods, and have what ranks ask for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

from kubernetes import client
from kubernetes.utils.quantity import parse_quantity

from infra.cluster.labels import INSTANCE
from infra.inspection.architectures import foreign_nodes
from infra.inspection.client import REQUEST_TIMEOUT, ClusterClient, Finding
from infra.inspection.pod_wish import PodWish, pod_wishes
from infra.stack.config import DeploymentConfig, RankParams
from infra.stack.placement_config import HOSTNAME

Nodes: TypeAlias = dict[str, Any]
Amounts: TypeAlias = dict[str, Decimal]

_FORBIDDEN, _NOT_FOUND = 403, 404
_SHOWN = 8
_RANK = "rank "
_DRIVER_LABELS = ("nvidia.com/cuda.driver-version.major", "nvidia.com/cuda.driver.major")
# https://docs.nvidia.com/deploy/cuda-compatibility/
_LEAST_DRIVER = 580


def check_nodes(cluster: ClusterClient, deployment: DeploymentConfig) -> Iterator[Finding]:
    """For every pod on this cluster. `deployment` is fitted: each rank names cores and memory."""
    core = client.CoreV1Api(cluster.api)
    wishes = pod_wishes(deployment, cluster.cluster_id)
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
        left = _left(core, deployment, nodes)
        for text in (*_named_faults(wishes, nodes, left), *_free_faults(wishes, nodes, left)):
            yield cluster.finding("fault", text)
        for text in foreign_nodes(deployment, wishes, nodes):
            yield cluster.finding("warning", text)
        for text in _old_drivers(deployment, wishes, nodes):
            yield cluster.finding("warning", text)
        if deployment.gpu_pinning == "dra":
            home = cluster.cluster_id
            ranks = [item for item in deployment.ranks if deployment.cluster_of(item.rank) == home]
            yield from _check_claims(cluster, ranks)


def _named_faults(
    wishes: Sequence[PodWish], nodes: Nodes, left: dict[str, Amounts]
) -> Iterator[str]:
    """Of the pods that name their node; what they ask for is taken off what is left of it."""
    on_node: dict[str, list[PodWish]] = defaultdict(list)
    for wish in wishes:
        on_node[wish.node].append(wish)
    on_node.pop("", None)
    for name, placed in on_node.items():
        if name not in nodes:
            known = ", ".join(sorted(nodes)[:_SHOWN]) or "none"
            yield f"node {name} of {_names(placed)} does not exist ({HOSTNAME}: {known})"
            continue
        refused: dict[str, list[PodWish]] = defaultdict(list)
        for wish in placed:
            refused[", ".join(wish.refusals(nodes[name]))].append(wish)
        refused.pop("", None)
        for reasons, alike in refused.items():
            yield f"node {name} does not take {_names(alike)}: {reasons}"
        yield from _shortages(placed, nodes[name], left[name])


def _free_faults(
    wishes: Sequence[PodWish], nodes: Nodes, left: dict[str, Amounts]
) -> Iterator[str]:
    """Of the others, the largest first, each where most is left: as many as the scheduler would
    place, or more."""
    free = [wish for wish in wishes if not wish.node]
    nowhere: dict[str, list[PodWish]] = defaultdict(list)
    for wish in sorted(free, key=lambda wish: -wish.amounts["memory"]):
        taking = [name for name, node in nodes.items() if not wish.refusals(node)]
        if not taking:
            reasons = [f"{name}: {', '.join(wish.refusals(node))}" for name, node in nodes.items()]
            nowhere["; ".join(reasons[:_SHOWN])].append(wish)
            continue
        roomy = [name for name in taking if _fits(wish, left[name])]
        if not roomy:
            asked = ", ".join(f"{_shown(*pair)} {pair[0]}" for pair in wish.amounts.items())
            rest = "; ".join(f"{name} has {_told(wish, left[name])}" for name in taking[:_SHOWN])
            yield (
                f"no node has room for {wish.name}, which asks for {asked}; beside other pods and "
                f"the rest of this stack {rest} left"
            )
            continue
        _take(wish, left[max(roomy, key=lambda name: left[name]["memory"])])
    for why, alike in nowhere.items():
        yield f"no node takes {_names(alike)}: {why or 'the cluster has no nodes'}"


def _old_drivers(
    deployment: DeploymentConfig, wishes: Sequence[PodWish], nodes: Nodes
) -> Iterator[str]:
    """As NVIDIA's feature discovery labels nodes; where it does not run nothing is known."""
    if deployment.gpu_pinning == "none":
        return
    ranks = [wish for wish in wishes if wish.name.startswith(_RANK)]
    for name, node in nodes.items():
        labels = node.metadata.labels or {}
        major = next((labels[key] for key in _DRIVER_LABELS if key in labels), "")
        taken = any(wish.node in ("", name) and not wish.refusals(node) for wish in ranks)
        if taken and major.isdecimal() and int(major) < _LEAST_DRIVER:
            yield (
                f"node {name} has NVIDIA driver {major}; CUDA 13.0, which the runner's image has "
                f"by default, needs {_LEAST_DRIVER} or newer (images.build_arguments.TORCH takes "
                "an older CUDA)"
            )


def _shortages(placed: Sequence[PodWish], node: Any, left: Amounts) -> Iterator[str]:
    """What the pods of a node ask for together, against what others leave of it."""
    asked: Amounts = defaultdict(Decimal)
    for wish in placed:
        for resource, amount in wish.amounts.items():
            asked[resource] += amount
    for resource, amount in asked.items():
        if amount > left[resource]:
            asks = "asks" if len(placed) == 1 else "together ask"
            allocatable = _amount((node.status.allocatable or {}).get(resource, "0"))
            yield (
                f"node {node.metadata.name} has {_shown(resource, left[resource])} left of "
                f"{_shown(resource, allocatable)} {resource}, and {_names(placed)} "
                f"{asks} for {_shown(resource, amount)}"
            )
        left[resource] -= amount


def _left(core: client.CoreV1Api, deployment: DeploymentConfig, nodes: Nodes) -> dict[str, Amounts]:
    """What pods that are not of this deployment leave of each node; all of it where that is not
    told."""
    left: dict[str, Amounts] = {
        name: defaultdict(Decimal, _allocatable(node)) for name, node in nodes.items()
    }
    by_name = {node.metadata.name: left[name] for name, node in nodes.items()}
    try:
        pods: Any = core.list_pod_for_all_namespaces(
            field_selector="status.phase!=Succeeded,status.phase!=Failed",
            _request_timeout=REQUEST_TIMEOUT,
        )
    except client.ApiException as error:
        if error.status != _FORBIDDEN:
            raise
        return left
    for pod in pods.items:
        own = (pod.metadata.labels or {}).get(INSTANCE) == deployment.deployment_name
        if own or pod.spec.node_name not in by_name:
            continue
        for container in pod.spec.containers:
            requests = (container.resources and container.resources.requests) or {}
            for resource, amount in requests.items():
                by_name[pod.spec.node_name][resource] -= _amount(amount)
    return left


def _allocatable(node: Any) -> Amounts:
    return {name: _amount(amount) for name, amount in (node.status.allocatable or {}).items()}


def _fits(wish: PodWish, left: Amounts) -> bool:
    return all(amount <= left[resource] for resource, amount in wish.amounts.items())


def _take(wish: PodWish, left: Amounts) -> None:
    for resource, amount in wish.amounts.items():
        left[resource] -= amount


def _told(wish: PodWish, left: Amounts) -> str:
    return ", ".join(f"{_shown(name, max(left[name], Decimal(0)))} {name}" for name in wish.amounts)


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
        if not params.device_uuid:
            continue
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


def _names(wishes: Sequence[PodWish]) -> str:
    """Ranks by their numbers, then the others."""
    ranks = [wish.name.removeprefix(_RANK) for wish in wishes if wish.name.startswith(_RANK)]
    others = list(dict.fromkeys(wish.name for wish in wishes if not wish.name.startswith(_RANK)))
    word = "rank" if len(ranks) == 1 else "ranks"
    return ", ".join(([f"{word} {', '.join(ranks)}"] if ranks else []) + others)


def _shown(resource: str, amount: Decimal) -> str:
    if resource in ("memory", "ephemeral-storage"):
        return f"{amount / 2**30:.1f} GiB"
    return f"{amount.normalize():f}"
