"""What the program asks a cluster before it declares anything. Nothing of it is ever required."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import urllib3.exceptions
from kubernetes import client, config

from infra.cluster.kubeconfig import Kubeconfig

# Seconds to connect, and to wait for an answer.
_TIMEOUT = (3, 5)
_NOT_FOUND = 404
_ARCHITECTURE = "kubernetes.io/arch"
# An address that is reached from anywhere goes first.
_ADDRESS_TYPES = ("ExternalIP", "InternalIP")
_UNANSWERED = (
    client.ApiException,
    config.ConfigException,
    urllib3.exceptions.HTTPError,
    OSError,
    ValueError,
)


@dataclass(frozen=True)
class FailedPod:
    """`reason` as its kubelet told it, as in "Evicted: low on memory"; may be ""."""

    name: str
    uid: str
    reason: str


def node_address(kubeconfig: Kubeconfig) -> str:
    """Of a node that is ready; "" where the cluster does not tell."""
    try:
        with _api(kubeconfig) as api:
            nodes: Any = client.CoreV1Api(api).list_node(_request_timeout=_TIMEOUT)
    except _UNANSWERED:
        return ""
    found = sorted(_addresses(nodes.items))
    return found[0][-1] if found else ""


def node_architectures(kubeconfig: Kubeconfig) -> frozenset[str]:
    """As in {"amd64", "arm64"}; none where the cluster does not tell."""
    try:
        with _api(kubeconfig) as api:
            nodes: Any = client.CoreV1Api(api).list_node(_request_timeout=_TIMEOUT)
    except _UNANSWERED:
        return frozenset()
    return frozenset(filter(None, map(architecture_of, nodes.items)))


def architecture_of(node: Any) -> str:
    """Of one node, as its kubelet labels it; "" where it has not yet."""
    info = node.status.node_info
    return (node.metadata.labels or {}).get(_ARCHITECTURE) or (info and info.architecture) or ""


def lacks_secret(kubeconfig: Kubeconfig, namespace: str, name: str) -> bool:
    """Whether the cluster says that there is no such Secret."""
    try:
        with _api(kubeconfig) as api:
            core = client.CoreV1Api(api)
            core.read_namespaced_secret(name, namespace, _request_timeout=_TIMEOUT)
    except client.ApiException as error:
        return bool(error.status == _NOT_FOUND)
    except _UNANSWERED:
        pass
    return False


def failed_pods(
    kubeconfig: Kubeconfig, namespace: str, labels: Mapping[str, str]
) -> list[FailedPod]:
    """The pods with these labels that are over and stay; none where the cluster does not tell."""
    try:
        with _api(kubeconfig) as api:
            found: Any = client.CoreV1Api(api).list_namespaced_pod(
                namespace,
                label_selector=",".join(f"{key}={value}" for key, value in labels.items()),
                field_selector="status.phase=Failed",
                _request_timeout=_TIMEOUT,
            )
    except _UNANSWERED:
        return []
    return [
        FailedPod(
            pod.metadata.name,
            pod.metadata.uid,
            ": ".join(filter(None, (pod.status.reason, pod.status.message))),
        )
        for pod in found.items
    ]


def _api(kubeconfig: Kubeconfig) -> client.ApiClient:
    configuration = client.Configuration()
    config.load_kube_config_from_dict(  # type: ignore[no-untyped-call]
        json.loads(kubeconfig.contents), client_configuration=configuration
    )
    configuration.retries = False
    return client.ApiClient(configuration)


def _addresses(nodes: list[Any]) -> Iterator[tuple[int, str, str]]:
    """Sortable: the kind of address, the node's name, the address."""
    for node in nodes:
        ready = any(one.type == "Ready" and one.status == "True" for one in node.status.conditions)
        for item in node.status.addresses or [] if ready else []:
            if item.type in _ADDRESS_TYPES:
                yield _ADDRESS_TYPES.index(item.type), node.metadata.name, item.address
