"""Objects that are in a stack's way in a cluster, and those that it needs and does not make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kubernetes import client

from contract.names import BLOCK_ID_ANNOTATION
from infra.cluster.fit import namespaces_on
from infra.cluster.labels import COMPONENT, INSTANCE, PROXY_BLOCK
from infra.inspection.client import REQUEST_TIMEOUT, ClusterClient, Finding
from infra.inspection.declared import DeclaredObject
from infra.stack.config import DeploymentConfig

_FORBIDDEN = 403
_POD_SECURITY = "pod-security.kubernetes.io/enforce"


def check_names(
    cluster: ClusterClient, deployment: DeploymentConfig, objects: Iterable[DeclaredObject]
) -> Iterator[Finding]:
    """Objects of the stack's names that do not carry its label."""
    for item in objects:
        with cluster.asked_to(f"get {item.resource} {item.name}"):
            there = cluster.metadata(item.path)
        if there is None or (there.get("labels") or {}).get(INSTANCE) == deployment.deployment_name:
            continue
        owner = (there.get("labels") or {}).get(INSTANCE)
        whose = f"of {owner}" if owner else "not this stack's"
        if item.resource == "namespaces":
            remedy = "set namespaces.create to false to use it, or choose another name"
            text = f"namespace {item.name} exists and is {whose}; {remedy}"
        else:
            where = f"{item.resource}/{item.name} in namespace {item.namespace}"
            text = f"{where} exists and is {whose}; delete it or choose another deployment_name"
        yield cluster.finding("fault", text)


def check_needed(cluster: ClusterClient, deployment: DeploymentConfig) -> Iterator[Finding]:
    """Namespaces, claims, classes and Secrets that the stack file names and somebody else makes."""
    for what, path, key in _needed(cluster.cluster_id, deployment):
        with cluster.asked_to(f"get {what}"):
            if cluster.metadata(path) is None:
                yield cluster.finding("fault", f"there is no {what} ({key})")
    with cluster.asked_to(f"get namespace {deployment.namespace}"):
        yield from _check_host_path(cluster, deployment)
    yield from _check_certificate(cluster, deployment)
    with cluster.asked_to("list services"):
        yield from _check_node_port(cluster, deployment)
        yield from _check_aliases(cluster, deployment)


def _needed(cluster_id: str, deployment: DeploymentConfig) -> Iterator[tuple[str, str, str]]:
    """(what, path, the stack file's key) of each."""
    places = namespaces_on(deployment, cluster_id)
    if not deployment.namespaces.create:
        for name in places:
            yield f"namespace {name}", f"/api/v1/namespaces/{name}", "namespaces.create is false"
        for name in places:
            for secret in deployment.image_pull_secrets:
                path = f"/api/v1/namespaces/{name}/secrets/{secret}"
                yield f"secret {secret} in namespace {name}", path, "image_pull_secrets"
    if deployment.priority_class:
        path = f"/apis/scheduling.k8s.io/v1/priorityclasses/{deployment.priority_class}"
        yield f"priority class {deployment.priority_class}", path, "priority_class"
    if deployment.gpu_pinning == "visible-devices":
        path = f"/apis/node.k8s.io/v1/runtimeclasses/{deployment.runtime_class}"
        yield f"runtime class {deployment.runtime_class}", path, "runtime_class"
    if deployment.model_cache.mode == "existing-claim":
        name, namespace = deployment.model_cache.claim_name, deployment.namespace
        path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"
        yield f"claim {name} in namespace {namespace}", path, "model_cache.claim_name"
    if deployment.inference_server.enabled and cluster_id == deployment.cluster_of(0):
        yield from _needed_in_front(deployment)
    scaled = any(block.max_instances > block.min_instances for block in deployment.proxy_blocks)
    if scaled and cluster_id == deployment.cluster_of(0):
        path = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io"
        yield "metrics-server, which autoscalers ask", path, "proxy_blocks.max_instances"


def _check_host_path(cluster: ClusterClient, deployment: DeploymentConfig) -> Iterator[Finding]:
    """What Pod Security of the ranks' namespace makes of a folder of the node."""
    if deployment.model_cache.mode != "host-path":
        return
    there = cluster.metadata(f"/api/v1/namespaces/{deployment.namespace}") or {}
    level = (there.get("labels") or {}).get(_POD_SECURITY, "")
    if level in ("restricted", "baseline"):
        text = (
            f"namespace {deployment.namespace} has {_POD_SECURITY}: {level}, which refuses pods "
            "with a folder of their node (model_cache.mode host-path); take another mode or "
            "namespace"
        )
        yield cluster.finding("fault", text)


def _needed_in_front(deployment: DeploymentConfig) -> Iterator[tuple[str, str, str]]:
    expose, key = deployment.inference_server.expose, "inference_server.expose"
    name = expose.class_name
    if expose.mode == "ingress" and name:
        path = f"/apis/networking.k8s.io/v1/ingressclasses/{name}"
        yield f"ingress class {name}", path, f"{key}.class_name"
    if expose.mode == "gateway":
        root = "/apis/gateway.networking.k8s.io/v1"
        if name:
            yield f"gateway class {name}", f"{root}/gatewayclasses/{name}", f"{key}.class_name"
        else:
            where, _, gateway = expose.gateway.partition("/")
            path = f"{root}/namespaces/{where}/gateways/{gateway}"
            yield f"gateway {gateway} in namespace {where}", path, f"{key}.gateway"


def _check_node_port(cluster: ClusterClient, deployment: DeploymentConfig) -> Iterator[Finding]:
    server = deployment.inference_server
    if not _has_front(cluster, deployment) or server.expose.mode != "node_port":
        return
    core = client.CoreV1Api(cluster.api)
    ours = (deployment.namespaces.inference_server, deployment.inference_server_name)
    try:
        services: Any = core.list_service_for_all_namespaces(_request_timeout=REQUEST_TIMEOUT)
    except client.ApiException as error:
        if error.status != _FORBIDDEN:
            raise
        text = f"you may not list services: whether node port {server.node_port} is free is unknown"
        yield cluster.finding("warning", text)
        return
    for service in services.items:
        holder = (service.metadata.namespace, service.metadata.name)
        ports = {port.node_port for port in service.spec.ports or []}
        if server.node_port in ports and holder != ours:
            name = "/".join(holder)
            rule = "choose another inference_server.node_port, or inference_server.enabled false"
            text = f"node port {server.node_port} is taken by service {name}; {rule}"
            yield cluster.finding("fault", text)


def _check_certificate(cluster: ClusterClient, deployment: DeploymentConfig) -> Iterator[Finding]:
    """No fault: cert-manager makes the Secret when its Ingress or Gateway is there."""
    secret = deployment.inference_server.expose.tls_secret
    namespace = deployment.namespaces.inference_server
    if not secret or not _has_front(cluster, deployment):
        return
    with cluster.asked_to(f"get secret {secret}"):
        there = cluster.metadata(f"/api/v1/namespaces/{namespace}/secrets/{secret}")
    if there is None:
        key = "inference_server.expose.tls_secret"
        text = f"there is no secret {secret} in namespace {namespace} yet, or you may not see it"
        yield cluster.finding("warning", f"{text} ({key}); until then there is no certificate")


def _check_aliases(cluster: ClusterClient, deployment: DeploymentConfig) -> Iterator[Finding]:
    """What other stacks' blocks are called, where aliases name blocks that are not ours."""
    aliases = deployment.inference_server.aliases
    if not aliases or not _has_front(cluster, deployment):
        return
    namespace = deployment.namespaces.blocks
    own = {block.block_id for block in deployment.proxy_blocks}
    core = client.CoreV1Api(cluster.api)
    services: Any = core.list_namespaced_service(
        namespace, label_selector=f"{COMPONENT}={PROXY_BLOCK}", _request_timeout=REQUEST_TIMEOUT
    )
    found = [(item.metadata.annotations or {}).get(BLOCK_ID_ANNOTATION) for item in services.items]
    for name, shares in aliases.items():
        path = f"inference_server.aliases.{name}"
        if name in found:
            text = f"{path}: there is a block of that name in namespace {namespace}; take another"
            yield cluster.finding("fault", text)
        for block_id in sorted(shares.keys() - own - set(found)):
            text = f"{path}.{block_id}: there is no such block in namespace {namespace} yet"
            yield cluster.finding("warning", text)


def _has_front(cluster: ClusterClient, deployment: DeploymentConfig) -> bool:
    on_it = cluster.cluster_id == deployment.cluster_of(0)
    return deployment.inference_server.enabled and on_it
