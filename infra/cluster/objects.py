"""What every Kubernetes object of a stack has: options, metadata, and a component as its parent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.meta import v1 as meta

from infra.cluster.labels import labels
from infra.cluster.pods import grace_s
from infra.stack.cluster_config import ModelCache
from infra.stack.config import DeploymentConfig
from infra.stack.tier_config import SessionStore

# What an object may take beyond the drain or load that it is waited for.
_READY_MARGIN_S = 300
# A load that nobody has limited ends itself when it stalls; a pod that no node takes does not.
_UNLIMITED_LOAD_S = 1800
SKIP_AWAIT = {"pulumi.com/skipAwait": "true"}


@dataclass(frozen=True)
class Place:
    """Where a stack's resources are among others. `component` is the name of the resource `parent`
    that has them all; "" and None: the stack is the program's own."""

    component: str = ""
    parent: pulumi.Resource | None = None

    @property
    def prefix(self) -> str:
        """Before names of resources that do not begin with the deployment's: a program may have
        several stacks, and the engine tells children by kind and name alone."""
        return f"{self.component}-" if self.component else ""


OWN_PROGRAM = Place()


@dataclass(frozen=True)
class Clusters:
    """`providers` maps a cluster id to its provider; every object waits for `before`: the
    namespaces, and what shows in them that the stack is there."""

    deployment: DeploymentConfig
    providers: Mapping[str, pulumi.ProviderResource]
    before: Sequence[pulumi.Resource]
    place: Place


class Component(pulumi.ComponentResource):
    """A part of a stack. Its objects are in `namespace` of rank 0's cluster unless said otherwise.

    `component` and `block_id` are labels of theirs; `component` "" for what belongs to all of them.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        clusters: Clusters,
        opts: pulumi.ResourceOptions | None,
        *,
        namespace: str = "",
        component: str = "",
        block_id: str = "",
    ) -> None:
        within = pulumi.ResourceOptions(parent=clusters.place.parent)
        options = pulumi.ResourceOptions.merge(within, opts)
        super().__init__(f"splitstack:deployment:{kind}", name, None, options)
        self._clusters, self._deployment = clusters, clusters.deployment
        self._home = self._deployment.cluster_of(0)
        self._namespace = namespace or self._deployment.namespace
        self._component, self._block_id = component, block_id

    def _metadata(
        self,
        name: str,
        *,
        namespace: str = "",
        component: str = "",
        rank: int | None = None,
        block_id: str | None = None,
        annotations: dict[str, str] | None = None,
    ) -> meta.ObjectMetaArgs:
        component = component or self._component
        block_id = self._block_id if block_id is None else block_id
        return meta.ObjectMetaArgs(
            name=name,
            namespace=namespace or self._namespace,
            labels=labels(self._deployment, component, rank, block_id),
            annotations=annotations,
        )

    def _options(
        self, depends_on: Sequence[pulumi.Resource] = (), *, cluster: str = ""
    ) -> pulumi.ResourceOptions:
        provider = self._clusters.providers[cluster or self._home]
        before = [*self._clusters.before, *depends_on]
        return object_options(self, provider, depends_on=before)

    def _resource_name(self, name: str, cluster: str) -> str:
        return on_cluster(self._deployment, name, cluster or self._home)

    def _config_map(self, name: str, data: Mapping[str, str], cluster: str = "") -> core.ConfigMap:
        return core.ConfigMap(
            self._resource_name(name, cluster),
            metadata=self._metadata(name),
            data=data,
            opts=self._options(cluster=cluster),
        )

    def _secret(
        self, name: str, data: Mapping[str, pulumi.Input[str]], cluster: str = ""
    ) -> core.Secret:
        return core.Secret(
            self._resource_name(name, cluster),
            metadata=self._metadata(name),
            string_data=data,
            opts=self._options(cluster=cluster),
        )

    def _account(self, name: str, cluster: str = "") -> core.ServiceAccount:
        return core.ServiceAccount(
            self._resource_name(name, cluster),
            metadata=self._metadata(name),
            automount_service_account_token=False,
            opts=self._options(cluster=cluster),
        )

    def _claim(
        self,
        name: str,
        volume: ModelCache | SessionStore,
        *,
        rank: int | None = None,
        cluster: str = "",
        shared: bool = False,
    ) -> core.PersistentVolumeClaim:
        """Goes with the stack, unless that is protected; one of a rank goes with that rank. Not
        waited for: many bind only once their pod is scheduled.

        `shared`: each of the clusters has one of this name, for several pods.
        """
        kept = pulumi.ResourceOptions(protect=self._deployment.protect and rank is None)
        return core.PersistentVolumeClaim(
            self._resource_name(name, cluster) if shared else name,
            # Claims are told apart by rank only.
            metadata=self._metadata(name, rank=rank, block_id="", annotations=SKIP_AWAIT),
            spec=core.PersistentVolumeClaimSpecArgs(
                access_modes=["ReadWriteMany" if shared else "ReadWriteOnce"],
                storage_class_name=volume.storage_class or None,
                resources=core.VolumeResourceRequirementsArgs(
                    requests={"storage": str(volume.size)}
                ),
            ),
            opts=pulumi.ResourceOptions.merge(self._options(cluster=cluster), kept),
        )


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
    load_s = deployment.common_params.load_timeout_s or _UNLIMITED_LOAD_S
    create_s = timeouts.create_s or load_s + _READY_MARGIN_S
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


def _seconds(count: float) -> str:
    return f"{math.ceil(count)}s"
