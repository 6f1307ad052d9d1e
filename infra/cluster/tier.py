"""A tier around the ranks, which is one Deployment: proxy blocks, inference server and Valkey."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import pulumi
from pulumi_kubernetes.apps import v1 as apps
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.meta import v1 as meta

from infra.cluster.labels import selector
from infra.cluster.objects import SKIP_AWAIT, Clusters, Component, waited_for
from infra.cluster.placement import Placement
from infra.cluster.pod_template import template_metadata
from infra.cluster.pods import Container, pod_spec
from infra.stack.pod_config import PodTemplate

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
    to an autoscaler. `alone`: never two at once, not even while they are replaced. With a
    `service_account` they hold its token.
    """

    container: Container
    files: str
    drain_s: float
    replicas: int | None = 1
    alone: bool = False
    placement: Placement | None = None
    template: PodTemplate = field(default_factory=PodTemplate)
    service_account: str = ""


class Tier(Component):
    """`name` is that of its Deployment, its Service and everything else of it."""

    def __init__(
        self,
        kind: str,
        resource_name: str,
        clusters: Clusters,
        opts: pulumi.ResourceOptions | None,
        *,
        name: str,
        namespace: str,
        component: str,
        block_id: str = "",
    ) -> None:
        super().__init__(
            kind,
            resource_name,
            clusters,
            opts,
            namespace=namespace,
            component=component,
            block_id=block_id,
        )
        self.name = name
        self._selector = selector(self._deployment, component, block_id=block_id)

    def _service(
        self,
        port: core.ServicePortArgs,
        *,
        kind: str | None = None,
        annotations: dict[str, str] | None = None,
    ) -> None:
        """Not waited for: it has no endpoints until the pods are ready."""
        core.Service(
            self.name,
            metadata=self._metadata(self.name, annotations=SKIP_AWAIT | (annotations or {})),
            spec=core.ServiceSpecArgs(type=kind, selector=self._selector, ports=[port]),
            opts=self._options(),
        )

    def _load_balancer(
        self, port: core.ServicePortArgs, class_name: str, annotations: dict[str, str]
    ) -> core.Service:
        """Waited for: its address is known when somebody has made it."""
        timeouts = pulumi.ResourceOptions(custom_timeouts=waited_for(self._deployment, 0))
        return core.Service(
            self.name,
            metadata=self._metadata(self.name, annotations=annotations or None),
            spec=core.ServiceSpecArgs(
                type="LoadBalancer",
                load_balancer_class=class_name or None,
                selector=self._selector,
                ports=[port],
            ),
            opts=pulumi.ResourceOptions.merge(self._options(), timeouts),
        )

    def _workload(self, pods: TierPods, mounted: Sequence[pulumi.Resource]) -> None:
        """A Deployment that is waited for as long as the stack file says; after what it mounts."""
        deployment = self._deployment
        head = self._metadata(self.name)
        checksum = hashlib.sha256(pods.files.encode()).hexdigest()
        timeouts = pulumi.ResourceOptions(custom_timeouts=waited_for(deployment, pods.drain_s))
        spec = pod_spec(
            containers=[pods.container],
            drain_s=pods.drain_s,
            placement=pods.placement,
            template=pods.template,
            service_account=pods.service_account,
            api_token=bool(pods.service_account),
            image_pull_secrets=deployment.image_pull_secrets,
        )
        apps.Deployment(
            self.name,
            metadata=head,
            spec=apps.DeploymentSpecArgs(
                replicas=pods.replicas,
                strategy=_strategy(pods.alone),
                selector=meta.LabelSelectorArgs(match_labels=self._selector),
                template=core.PodTemplateSpecArgs(
                    metadata=template_metadata(
                        pods.template, head, {CHECKSUM_ANNOTATION: checksum}
                    ),
                    spec=spec,
                ),
            ),
            opts=pulumi.ResourceOptions.merge(self._options(mounted), timeouts),
        )


def _strategy(alone: bool) -> apps.DeploymentStrategyArgs:
    if alone:
        return apps.DeploymentStrategyArgs(type="Recreate")
    # The next one is ready before the last one drains.
    rolling = apps.RollingUpdateDeploymentArgs(max_surge=1, max_unavailable=0)
    return apps.DeploymentStrategyArgs(type="RollingUpdate", rolling_update=rolling)
