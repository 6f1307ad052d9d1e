"""Every object that a stack declares in its clusters, by name. Pure.

`splitstack doctor` asks about them before anything is created; a test holds them equal to what
the Pulumi program declares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from infra.cluster.fit import rank_clusters, stack_places
from infra.cluster.network_rules import network_rules
from infra.cluster.observability.metrics_targets import metrics_targets
from infra.cluster.rank_pod import (
    device_claim_name,
    group_spec_name,
    model_claim_name,
    rank_account_name,
    rank_secret_name,
)
from infra.stack.config import DeploymentConfig

_GROUPS = {
    "statefulsets": "apps",
    "deployments": "apps",
    "horizontalpodautoscalers": "autoscaling",
    "poddisruptionbudgets": "policy",
    "networkpolicies": "networking.k8s.io",
    "roles": "rbac.authorization.k8s.io",
    "rolebindings": "rbac.authorization.k8s.io",
    "resourceclaimtemplates": "resource.k8s.io",
    "prometheusrules": "monitoring.coreos.com",
    "podmonitors": "monitoring.coreos.com",
}
_VERSIONS = {"autoscaling": "v2"}


@dataclass(frozen=True)
class DeclaredObject:
    """`resource` is the plural in the API's paths; `namespace` "" for a namespace itself."""

    cluster: str
    resource: str
    namespace: str
    name: str

    @property
    def group(self) -> str:
        """API group; "" is the core."""
        return _GROUPS.get(self.resource, "")

    @property
    def path(self) -> str:
        """Its path at the API server."""
        version = _VERSIONS.get(self.group, "v1")
        root = f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"
        place = f"/namespaces/{self.namespace}" if self.namespace else ""
        return f"{root}{place}/{self.resource}/{self.name}"


def declared_objects(
    deployment: DeploymentConfig, *, api_keys: bool = True, store_password: bool = True
) -> list[DeclaredObject]:
    """`api_keys` and `store_password`: whether the stack has these secrets."""
    found = [*_namespaces(deployment), *_policies(deployment), *_ranks(deployment)]
    found += _proxy_blocks(deployment)
    found += _session_store(deployment, store_password)
    found += _inference_server(deployment, api_keys)
    found += _observability(deployment)
    return found


def _namespaces(deployment: DeploymentConfig) -> Iterator[DeclaredObject]:
    if deployment.namespaces.create:
        for cluster, namespace in stack_places(deployment):
            yield DeclaredObject(cluster, "namespaces", "", namespace)


def _ranks(deployment: DeploymentConfig) -> Iterator[DeclaredObject]:
    namespace, home = deployment.namespace, deployment.cluster_of(0)
    for cluster in rank_clusters(deployment):
        yield DeclaredObject(cluster, "configmaps", namespace, group_spec_name(deployment))
        yield DeclaredObject(cluster, "secrets", namespace, rank_secret_name(deployment))
        yield DeclaredObject(cluster, "serviceaccounts", namespace, rank_account_name(deployment))
    for name in (deployment.rank_master_name, deployment.master_api_name):
        yield DeclaredObject(home, "services", namespace, name)
    workload = {"pod": "pods", "statefulset": "statefulsets"}[deployment.workload]
    for rank in range(deployment.nnodes):
        cluster = deployment.cluster_of(rank)
        yield DeclaredObject(cluster, workload, namespace, deployment.rank_name(rank))
        if deployment.gpu_pinning == "dra":
            name = device_claim_name(deployment, rank)
            yield DeclaredObject(cluster, "resourceclaimtemplates", namespace, name)
        if deployment.model_cache.mode == "own-claim":
            name = model_claim_name(deployment, rank)
            yield DeclaredObject(cluster, "persistentvolumeclaims", namespace, name)


def _proxy_blocks(deployment: DeploymentConfig) -> Iterator[DeclaredObject]:
    home, namespace = deployment.cluster_of(0), deployment.namespaces.blocks
    for block in deployment.proxy_blocks:
        name = deployment.proxy_name(block.block_id)
        resources = ["configmaps", "services", "deployments", "poddisruptionbudgets"]
        if block.max_instances > block.min_instances:
            resources.append("horizontalpodautoscalers")
        if deployment.session_store.mode == "sqlite" and deployment.session_store.size is not None:
            resources.append("persistentvolumeclaims")
        for resource in resources:
            yield DeclaredObject(home, resource, namespace, name)


def _session_store(deployment: DeploymentConfig, password: bool) -> Iterator[DeclaredObject]:
    store = deployment.session_store
    if not deployment.proxy_blocks or store.mode == "sqlite":
        return
    resources = ["secrets"] if password else []
    if store.mode == "valkey":
        resources += ["configmaps", "services", "deployments"]
        if store.size is not None:
            resources.append("persistentvolumeclaims")
    home, namespace = deployment.cluster_of(0), deployment.namespaces.blocks
    for resource in resources:
        yield DeclaredObject(home, resource, namespace, deployment.session_store_name)


def _inference_server(deployment: DeploymentConfig, api_keys: bool) -> Iterator[DeclaredObject]:
    server = deployment.inference_server
    if not server.enabled:
        return
    home, name = deployment.cluster_of(0), deployment.inference_server_name
    resources = ["configmaps", "services", "deployments"] + ["secrets"] * api_keys
    if server.discovery == "kubernetes":
        resources.append("serviceaccounts")
        for resource in ("roles", "rolebindings"):
            yield DeclaredObject(home, resource, deployment.namespaces.blocks, name)
    for resource in resources:
        yield DeclaredObject(home, resource, deployment.namespaces.inference_server, name)


def _policies(deployment: DeploymentConfig) -> Iterator[DeclaredObject]:
    if deployment.network_policies.enabled:
        for rule in network_rules(deployment):
            name = f"{deployment.deployment_name}-{rule.name}"
            yield DeclaredObject(rule.cluster, "networkpolicies", rule.namespace, name)


def _observability(deployment: DeploymentConfig) -> Iterator[DeclaredObject]:
    if not deployment.observability.enabled:
        return
    operator = deployment.observability.prometheus_operator
    rules, scraped = ("prometheusrules", "podmonitors") if operator else ("configmaps", "services")
    home, prefix = deployment.cluster_of(0), deployment.deployment_name
    yield DeclaredObject(home, "configmaps", deployment.namespace, f"{prefix}-dashboard")
    yield DeclaredObject(home, rules, deployment.namespace, f"{prefix}-alerts")
    for target in metrics_targets(deployment):
        name = f"{prefix}-metrics-{target.name}"
        yield DeclaredObject(target.cluster, scraped, target.namespace, name)
