"""The Deployment of a tier: one builder for proxy blocks, inference server and Valkey."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.apps import v1 as apps
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.meta import v1 as meta

from infra.cluster import labels
from infra.cluster.objects import metadata, waited_for
from infra.stack.config import DeploymentConfig

# Until every node's proxy knows that a pod goes; within the pod's grace period.
QUIET_S = 5
# What a tier without a model may take until it answers.
STARTUP_S = 60.0
CHECKSUM_ANNOTATION = "splitstack.dev/spec-checksum"


@dataclass(frozen=True)
class TierPods:
    """What a tier runs.

    `files` is the text of the files that its processes read only once: a ConfigMap that changes
    in place restarts nobody, so its checksum rolls the pods. `replicas` None leaves their number
    to an autoscaler. `alone`: never two at once, not even while they are replaced.
    """

    component: str
    spec: core.PodSpecArgs
    files: str
    drain_s: float
    replicas: int | None = 1
    alone: bool = False
    block_id: str = ""


def tier_deployment(
    deployment: DeploymentConfig,
    name: str,
    namespace: str,
    pods: TierPods,
    options: pulumi.ResourceOptions,
) -> apps.Deployment:
    """A Deployment that is waited for as long as the stack file says."""
    timeouts = pulumi.ResourceOptions(custom_timeouts=waited_for(deployment, pods.drain_s))
    selector = labels.selector(deployment, pods.component, block_id=pods.block_id)
    checksum = hashlib.sha256(pods.files.encode()).hexdigest()
    return apps.Deployment(
        name,
        metadata=metadata(deployment, name, namespace, pods.component, block_id=pods.block_id),
        spec=apps.DeploymentSpecArgs(
            replicas=pods.replicas,
            strategy=_strategy(pods.alone),
            selector=meta.LabelSelectorArgs(match_labels=selector),
            template=core.PodTemplateSpecArgs(
                metadata=meta.ObjectMetaArgs(
                    labels=labels.labels(deployment, pods.component, block_id=pods.block_id),
                    annotations={CHECKSUM_ANNOTATION: checksum},
                ),
                spec=pods.spec,
            ),
        ),
        opts=pulumi.ResourceOptions.merge(options, timeouts),
    )


def _strategy(alone: bool) -> apps.DeploymentStrategyArgs:
    if alone:
        return apps.DeploymentStrategyArgs(type="Recreate")
    # The next one is ready before the last one drains.
    rolling = apps.RollingUpdateDeploymentArgs(max_surge=1, max_unavailable=0)
    return apps.DeploymentStrategyArgs(type="RollingUpdate", rolling_update=rolling)
