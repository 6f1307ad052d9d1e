"""One explicit provider for each cluster, and the namespaces that a stack makes there."""

from __future__ import annotations

from collections.abc import Mapping

import pulumi
import pulumi_kubernetes
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.meta import v1 as meta

from infra.cluster.fit import rank_clusters, stack_places
from infra.cluster.kubeconfig import Kubeconfig
from infra.cluster.labels import labels
from infra.cluster.objects import object_options, on_cluster
from infra.stack.config import DeploymentConfig

_RESTRICTED = {
    f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")
}


def cluster_providers(
    deployment: DeploymentConfig, kubeconfigs: Mapping[str, Kubeconfig]
) -> dict[str, pulumi_kubernetes.Provider]:
    """A provider for each cluster with ranks on it, that of rank 0 first.

    With `cluster_identifier` a changed cluster_id replaces everything on it, and a kubeconfig with
    other credentials for the same cluster replaces nothing.
    """
    return {
        cluster: pulumi_kubernetes.Provider(
            cluster,
            kubeconfig=pulumi.Output.secret(kubeconfigs[cluster].contents),
            context=kubeconfigs[cluster].context,
            cluster_identifier=cluster,
            # Pods name what they mount by plain strings: an edit must not need another name.
            enable_config_map_mutable=True,
            enable_secret_mutable=True,
        )
        for cluster in rank_clusters(deployment)
    }


def create_namespaces(
    deployment: DeploymentConfig,
    providers: Mapping[str, pulumi.ProviderResource],
) -> list[pulumi.Resource]:
    """The namespaces that this stack owns: none where `namespaces.create` is false."""
    if not deployment.namespaces.create:
        return []
    return [
        core.Namespace(
            on_cluster(deployment, name, cluster),
            metadata=meta.ObjectMetaArgs(name=name, labels=labels(deployment, "") | _RESTRICTED),
            opts=object_options(None, providers[cluster]),
        )
        for cluster, name in stack_places(deployment)
    ]
