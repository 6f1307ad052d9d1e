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
from infra.inspection.needed import bundle_namespaces, claim_classes, needed_objects
from infra.stack.config import DeploymentConfig

_FORBIDDEN = 403
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
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
            where = f"{item.resource}/{item.name}"
            where += f" in namespace {item.namespace}" if item.namespace else ""
            text = f"{where} exists and is {whose}; delete it or choose another deployment_name"
        yield cluster.finding("fault", text)


def check_needed(cluster: ClusterClient, deployment: DeploymentConfig) -> Iterator[Finding]:
    """Namespaces, claims, classes and Secrets that the stack file names and somebody else makes."""
    for what, path, key in needed_objects(cluster.cluster_id, deployment):
        with cluster.asked_to(f"get {what}"):
            if cluster.metadata(path) is None:
                yield cluster.finding("fault", f"there is no {what} ({key})")
    with cluster.asked_to(f"get namespace {deployment.namespace}"):
        yield from _check_host_path(cluster, deployment)
    yield from _check_certificate(cluster, deployment)
    yield from _check_later(cluster, deployment)
    with cluster.asked_to("list storage classes"):
        yield from _check_default_class(cluster, deployment)
    with cluster.asked_to("list services"):
        yield from _check_node_port(cluster, deployment)
        yield from _check_aliases(cluster, deployment)


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


def _check_later(cluster: ClusterClient, deployment: DeploymentConfig) -> Iterator[Finding]:
    """In namespaces that are made by the same `up` nobody can have put them before."""
    if deployment.namespaces.create:
        for secret in deployment.image_pull_secrets:
            names = ", ".join(namespaces_on(deployment, cluster.cluster_id))
            text = (
                f"secret {secret} (image_pull_secrets) is to be made in {names} once `up` has made "
                "these namespaces; pods wait for it until then"
            )
            yield cluster.finding("warning", text)
        if places := bundle_namespaces(cluster.cluster_id, deployment):
            bundle = deployment.ca_bundle
            text = (
                f"{bundle.config_map or bundle.secret} (ca_bundle) is to be made in "
                f"{', '.join(places)} once `up` has made these namespaces; pods wait for it until "
                "then"
            )
            yield cluster.finding("warning", text)


def _check_default_class(cluster: ClusterClient, deployment: DeploymentConfig) -> Iterator[Finding]:
    """Claims that name no class take the cluster's default one, if there is one."""
    keys = [key for key, name in claim_classes(deployment, cluster.cluster_id) if not name]
    if not keys:
        return
    api = client.StorageV1Api(cluster.api)
    try:
        listed: Any = api.list_storage_class(_request_timeout=REQUEST_TIMEOUT)
    except client.ApiException as error:
        if error.status != _FORBIDDEN:
            raise
        return
    if not any(
        (item.metadata.annotations or {}).get(_DEFAULT_CLASS) == "true" for item in listed.items
    ):
        known = ", ".join(item.metadata.name for item in listed.items) or "none"
        text = f"{keys[0]} is empty, and no storage class is the default one (there are: {known})"
        yield cluster.finding("fault", text)


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
