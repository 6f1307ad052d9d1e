"""One explicit provider for each cluster, and the namespaces that a stack makes there."""

from __future__ import annotations

from collections.abc import Mapping

import pulumi
import pulumi_kubernetes
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.meta import v1 as meta

from infra.cluster.fit import namespaces_on, rank_clusters
from infra.cluster.kubeconfig import Kubeconfig
from infra.cluster.labels import RETAINED, labels
from infra.cluster.namespace_guard import guard_namespaces, hold_namespace
from infra.cluster.objects import Clusters, Place, object_options, on_cluster
from infra.stack.config import DeploymentConfig

_RESTRICTED = {
    f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")
}


def stack_clusters(
    deployment: DeploymentConfig,
    kubeconfigs: Mapping[str, Kubeconfig],
    later: Mapping[str, pulumi.Output[str]],
    place: Place,
) -> Clusters:
    """A provider for each cluster with ranks on it, and the namespaces that this stack owns.

    `later` has the kubeconfigs that are not known yet, as of a cluster that is still to be made.

    With `cluster_identifier` a changed cluster_id replaces everything on it, and a kubeconfig with
    other credentials for the same cluster replaces nothing.
    """
    providers = {
        cluster: _provider(cluster, kubeconfigs.get(cluster), later.get(cluster), place)
        for cluster in rank_clusters(deployment)
    }
    before: list[pulumi.Resource] = []
    for cluster, provider in providers.items():
        made = _namespaces(deployment, cluster, provider, place)
        before += made
        before += [
            hold_namespace(
                deployment, cluster, name, object_options(place.parent, provider, depends_on=made)
            )
            for name in namespaces_on(deployment, cluster)
        ]
    return Clusters(deployment, providers, before, place)


def _namespaces(
    deployment: DeploymentConfig, cluster: str, provider: pulumi.ProviderResource, place: Place
) -> list[pulumi.Resource]:
    """Those that the stack makes there, each with what guards it."""
    owned = deployment.namespaces
    if not owned.create:
        return []
    names = namespaces_on(deployment, cluster)
    guards: Mapping[str, pulumi.Resource] = {}
    if owned.guard and not owned.retain:
        guards = guard_namespaces(deployment, cluster, names, provider, place.parent)
    return [
        _namespace(deployment, name, cluster, provider, guards.get(name), place) for name in names
    ]


def _provider(
    cluster: str, known: Kubeconfig | None, later: pulumi.Output[str] | None, place: Place
) -> pulumi_kubernetes.Provider:
    contents = known.contents if known else later
    return pulumi_kubernetes.Provider(
        f"{place.prefix}{cluster}",
        kubeconfig=pulumi.Output.secret(contents),
        context=known.context if known else None,
        cluster_identifier=cluster,
        # Pods name what they mount by plain strings: an edit must not need another name.
        enable_config_map_mutable=True,
        enable_secret_mutable=True,
        opts=pulumi.ResourceOptions(parent=place.parent),
    )


def _namespace(
    deployment: DeploymentConfig,
    name: str,
    cluster: str,
    provider: pulumi.ProviderResource,
    guard: pulumi.Resource | None,
    place: Place,
) -> core.Namespace:
    """The annotation is for the next edit: the program is not told the options of what is there."""
    retain = deployment.namespaces.retain
    before = [] if guard is None else [guard]
    return core.Namespace(
        place.prefix + on_cluster(deployment, name, cluster),
        metadata=meta.ObjectMetaArgs(
            name=name,
            labels=labels(deployment, "") | _RESTRICTED,
            annotations={RETAINED: "true"} if retain else None,
        ),
        opts=pulumi.ResourceOptions.merge(
            object_options(place.parent, provider, depends_on=before),
            pulumi.ResourceOptions(retain_on_delete=retain, protect=deployment.protect),
        ),
    )
