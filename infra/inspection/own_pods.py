"""The pods of a stack in a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kubernetes import client

from infra.cluster.fit import namespaces_on
from infra.cluster.labels import INSTANCE, MANAGED_BY, PROJECT
from infra.inspection.client import REQUEST_TIMEOUT, ClusterClient
from infra.stack.config import DeploymentConfig


def own_selector(deployment: DeploymentConfig) -> str:
    """What the API server finds them by."""
    return f"{INSTANCE}={deployment.deployment_name},{MANAGED_BY}={PROJECT}"


def own_pods(cluster: ClusterClient, deployment: DeploymentConfig) -> Iterator[Any]:
    """One namespace after the other: the right to list the pods of all is rarer than these.

    Raises ClusterError.
    """
    core = client.CoreV1Api(cluster.api)
    for namespace in namespaces_on(deployment, cluster.cluster_id):
        with cluster.asked_to(f"list pods in namespace {namespace}"):
            listed: Any = core.list_namespaced_pod(
                namespace,
                label_selector=own_selector(deployment),
                _request_timeout=REQUEST_TIMEOUT,
            )
        yield from listed.items
