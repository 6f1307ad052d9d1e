"""Pulumi options and metadata that every Kubernetes object of a stack has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pulumi
from pulumi_kubernetes.meta import v1 as meta

from infra.cluster.labels import labels
from infra.cluster.pods import grace_s
from infra.stack.config import DeploymentConfig

# What an object may take beyond the drain or load that it is waited for.
_READY_MARGIN_S = 300
SKIP_AWAIT = {"pulumi.com/skipAwait": "true"}


def object_options(
    parent: pulumi.Resource | None,
    provider: pulumi.ProviderResource,
    *,
    depends_on: Sequence[pulumi.Resource] = (),
) -> pulumi.ResourceOptions:
    """Names are explicit, so an object must go before the one that replaces it comes."""
    return pulumi.ResourceOptions(
        parent=parent, provider=provider, depends_on=list(depends_on), delete_before_replace=True
    )


def waited_for(deployment: DeploymentConfig, drain_s: float) -> pulumi.CustomTimeouts:
    """Limits on how long pods are waited for: an unschedulable one would be without end."""
    timeouts = deployment.timeouts
    create_s = timeouts.create_s or deployment.common_params.load_timeout_s + _READY_MARGIN_S
    return pulumi.CustomTimeouts(
        create=_seconds(create_s),
        update=_seconds(create_s),
        delete=_seconds(timeouts.delete_s + grace_s(drain_s)),
    )


def on_cluster(deployment: DeploymentConfig, name: str, cluster: str) -> str:
    """The resource's name of an object that other clusters of the stack have too.

    On rank 0's cluster it does without the cluster's id: another id is to replace the object, and
    under another name a second one of the same name would be created first.
    """
    return name if cluster == deployment.cluster_of(0) else f"{name}-{cluster}"


def metadata(
    deployment: DeploymentConfig,
    name: str,
    namespace: str,
    component: str,
    *,
    rank: int | None = None,
    block_id: str = "",
    annotations: dict[str, str] | None = None,
) -> meta.ObjectMetaArgs:
    """An object's name, namespace and labels; `component` "" for what belongs to all of them."""
    return meta.ObjectMetaArgs(
        name=name,
        namespace=namespace,
        labels=labels(deployment, component, rank, block_id),
        annotations=annotations,
    )


def _seconds(count: float) -> str:
    return f"{math.ceil(count)}s"
