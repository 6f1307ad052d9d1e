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
from infra.cluster.objects import Clusters, object_options, on_cluster
from infra.stack.config import DeploymentConfig

_RESTRICTED = {
    f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")
}


def stack_clusters(deployment: DeploymentConfig, kubeconfigs: Mapping[str, Kubeconfig]) -> Clusters:
    """A provider for each cluster with ranks on it, and the namespaces that this stack owns.

    With `cluster_identifier` a changed cluster_id replaces everything on it, and a kubeconfig with
    other credentials for the same cluster replaces nothing.
    """
    providers = {
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
    places = stack_places(deployment) if deployment.namespaces.create else []
    namespaces = [
        core.Namespace(
            on_cluster(deployment, name, cluster),
            metadata=meta.ObjectMetaArgs(name=name, labels=labels(deployment, "") | _RESTRICTED),
            opts=object_options(None, providers[cluster]),
        )
        for cluster, name in places
    ]
    return Clusters(deployment, providers, namespaces)
