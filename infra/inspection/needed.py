"""What a stack names and somebody else makes. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from infra.cluster.fit import namespaces_on
from infra.stack.config import DeploymentConfig
from infra.stack.pod_config import PodTemplate

_PLURALS = {"config_map": "configmaps", "secret": "secrets", "claim": "persistentvolumeclaims"}


def needed_objects(cluster_id: str, deployment: DeploymentConfig) -> Iterator[tuple[str, str, str]]:
    """(what, path, the stack file's key) of each."""
    places = namespaces_on(deployment, cluster_id)
    if not deployment.namespaces.create:
        for name in places:
            yield f"namespace {name}", f"/api/v1/namespaces/{name}", "namespaces.create is false"
        for name in places:
            for secret in deployment.image_pull_secrets:
                path = f"/api/v1/namespaces/{name}/secrets/{secret}"
                yield f"secret {secret} in namespace {name}", path, "image_pull_secrets"
        yield from _needed_by_templates(cluster_id, deployment)
        yield from _needed_bundle(cluster_id, deployment)
    for key, name in claim_classes(deployment, cluster_id):
        if name:
            path = f"/apis/storage.k8s.io/v1/storageclasses/{name}"
            yield f"storage class {name}", path, key
    if deployment.priority_class:
        path = f"/apis/scheduling.k8s.io/v1/priorityclasses/{deployment.priority_class}"
        yield f"priority class {deployment.priority_class}", path, "priority_class"
    if runtime_class := deployment.rank_runtime_class:
        path = f"/apis/node.k8s.io/v1/runtimeclasses/{runtime_class}"
        yield f"runtime class {runtime_class}", path, "runtime_class"
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


def bundle_namespaces(cluster_id: str, deployment: DeploymentConfig) -> list[str]:
    """Where ca_bundle has to be."""
    if not deployment.ca_bundle.given:
        return []
    home = cluster_id == deployment.cluster_of(0)
    asks_outside = bool(deployment.proxy_blocks) and deployment.session_store.mode == "url"
    in_front = [deployment.namespaces.blocks] if home and asks_outside else []
    return list(dict.fromkeys([deployment.namespace, *in_front]))


def _needed_bundle(cluster_id: str, deployment: DeploymentConfig) -> Iterator[tuple[str, str, str]]:
    bundle = deployment.ca_bundle
    kind, name = ("secret", bundle.secret) if bundle.secret else ("config_map", bundle.config_map)
    for namespace in bundle_namespaces(cluster_id, deployment):
        path = f"/api/v1/namespaces/{namespace}/{_PLURALS[kind]}/{name}"
        what = f"{kind.replace('_', ' ')} {name} in namespace {namespace}"
        yield what, path, f"ca_bundle.{kind}"


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


def claim_classes(deployment: DeploymentConfig, cluster_id: str) -> Iterator[tuple[str, str]]:
    """(the stack file's key, storage class or "") of the claims that this stack makes there."""
    cache, store = deployment.model_cache, deployment.session_store
    if cache.mode in ("own-claim", "shared-claim"):
        yield "model_cache.storage_class", cache.storage_class
    if (
        store.size is not None
        and deployment.proxy_blocks
        and cluster_id == deployment.cluster_of(0)
    ):
        yield "session_store.storage_class", store.storage_class


def _needed_by_templates(
    cluster_id: str, deployment: DeploymentConfig
) -> Iterator[tuple[str, str, str]]:
    """What volumes and variables of pod_template come from."""
    namespaces = deployment.namespaces
    templates: list[tuple[str, str, PodTemplate]] = [
        ("pod_template", deployment.namespace, deployment.pod_template)
    ]
    if cluster_id == deployment.cluster_of(0):
        templates += [
            (f"proxy_blocks[{index}].pod_template", namespaces.blocks, block.pod_template)
            for index, block in enumerate(deployment.proxy_blocks)
        ]
        if deployment.inference_server.enabled:
            own = deployment.inference_server.pod_template
            templates.append(("inference_server.pod_template", namespaces.inference_server, own))
        if deployment.has_valkey:
            own = deployment.session_store.pod_template
            templates.append(("session_store.pod_template", namespaces.blocks, own))
    for key, namespace, template in templates:
        for source in (*template.volumes, *template.env_from):
            for kind, plural in _PLURALS.items():
                if name := getattr(source, kind, ""):
                    path = f"/api/v1/namespaces/{namespace}/{plural}/{name}"
                    yield f"{kind.replace('_', ' ')} {name} in namespace {namespace}", path, key
