"""The split model: one workload per rank, what they mount, and the two Services of rank 0."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.apps import v1 as apps
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.meta import v1 as meta
from pulumi_kubernetes.resource import v1 as devices

from contract.specs import MASTER_HTTP_PORT, GroupSpec, render, spec_hash
from infra.cluster import rank_pod
from infra.cluster.fit import rank_clusters
from infra.cluster.labels import RANK_COMPONENT, RANK_MASTER, selector
from infra.cluster.objects import (
    SKIP_AWAIT,
    metadata,
    object_options,
    on_cluster,
    waited_for,
)
from infra.cluster.secrets import StackSecrets
from infra.stack.config import DeploymentConfig, RankParams

# https://github.com/kubernetes-sigs/dra-driver-nvidia-gpu
_DEVICE_CLASS = "gpu.nvidia.com"


@dataclass(frozen=True)
class SplitModelArgs:
    """`providers` maps a cluster id to its provider; `namespaces` are waited for."""

    deployment: DeploymentConfig
    group: GroupSpec
    image: pulumi.Input[str]
    secrets: StackSecrets
    providers: Mapping[str, pulumi.ProviderResource]
    namespaces: Sequence[pulumi.Resource] = ()


class SplitModel(pulumi.ComponentResource):
    """`ranks` are the workloads in order: pods, or stateful sets of one pod each."""

    def __init__(
        self, name: str, arguments: SplitModelArgs, options: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("splitstack:deployment:SplitModel", name, None, options)
        self._arguments = arguments
        self._deployment = arguments.deployment
        shared = {
            cluster: self._shared_objects(cluster) for cluster in rank_clusters(self._deployment)
        }
        self._services()
        self.ranks = [
            self._rank(params, shared[self._deployment.cluster_of(params.rank)])
            for params in self._deployment.ranks
        ]
        self.register_outputs({"spec_hash": spec_hash(arguments.group)})

    def _options(
        self, cluster: str, depends_on: Sequence[pulumi.Resource] = ()
    ) -> pulumi.ResourceOptions:
        provider = self._arguments.providers[cluster]
        depends_on = [*self._arguments.namespaces, *depends_on]
        return object_options(self, provider, depends_on=depends_on)

    def _metadata(self, name: str, component: str = RANK_COMPONENT) -> meta.ObjectMetaArgs:
        return metadata(self._deployment, name, self._deployment.namespace, component)

    def _shared_objects(self, cluster: str) -> list[pulumi.Resource]:
        """What every rank of a cluster mounts and runs as; pods name them by plain strings."""
        deployment, secrets = self._deployment, self._arguments.secrets
        options = self._options(cluster)
        spec = rank_pod.group_spec_name(deployment)
        secret = rank_pod.rank_secret_name(deployment)
        account = rank_pod.rank_account_name(deployment)
        tokens = {
            rank_pod.GROUP_TOKEN_FILE: secrets.group_token,
            rank_pod.HUB_TOKEN_FILE: secrets.hub_token,
        }
        return [
            core.ConfigMap(
                on_cluster(deployment, spec, cluster),
                metadata=self._metadata(spec),
                data={rank_pod.SPEC_FILE: render(self._arguments.group)},
                opts=options,
            ),
            core.Secret(
                on_cluster(deployment, secret, cluster),
                metadata=self._metadata(secret),
                string_data={name: value for name, value in tokens.items() if value is not None},
                opts=options,
            ),
            core.ServiceAccount(
                on_cluster(deployment, account, cluster),
                metadata=self._metadata(account),
                automount_service_account_token=False,
                opts=options,
            ),
        ]

    def _services(self) -> None:
        """`rank-master` before the group is ready, for its ranks; `master-api` after, for users."""
        deployment = self._deployment
        chosen = selector(deployment, RANK_COMPONENT, 0)
        options = self._options(deployment.cluster_of(0))
        http = core.ServicePortArgs(name="http", port=MASTER_HTTP_PORT, target_port="http")
        group_port = deployment.common_params.master_port
        group = core.ServicePortArgs(name="group", port=group_port, target_port="group")
        core.Service(
            deployment.rank_master_name,
            metadata=self._metadata(deployment.rank_master_name, RANK_MASTER),
            spec=core.ServiceSpecArgs(
                cluster_ip="None",
                publish_not_ready_addresses=True,
                selector=chosen,
                ports=[group, http],
            ),
            opts=options,
        )
        core.Service(
            deployment.master_api_name,
            metadata=metadata(
                deployment,
                deployment.master_api_name,
                deployment.namespace,
                RANK_MASTER,
                annotations=SKIP_AWAIT,
            ),
            spec=core.ServiceSpecArgs(type="ClusterIP", selector=chosen, ports=[http]),
            opts=options,
        )

    def _rank(
        self, params: RankParams, shared: Sequence[pulumi.Resource]
    ) -> core.Pod | apps.StatefulSet:
        """No rank depends on another: each gets ready only when all of them run."""
        deployment = self._deployment
        cluster = deployment.cluster_of(params.rank)
        name = deployment.rank_name(params.rank)
        own = self._own_objects(params, cluster)
        options = pulumi.ResourceOptions.merge(
            self._options(cluster, [*shared, *own]),
            pulumi.ResourceOptions(
                # A group is one: an edit of any rank's part ends and starts all of them. Never
                # "*": after a refresh it replaces every rank that is not ready at the moment.
                replacement_trigger=self._trigger(),
                replace_on_changes=["spec", "metadata"],
                custom_timeouts=waited_for(deployment, deployment.common_params.request_deadline_s),
            ),
        )
        head = metadata(deployment, name, deployment.namespace, RANK_COMPONENT, rank=params.rank)
        spec = rank_pod.rank_pod_spec(
            deployment,
            params,
            self._arguments.image,
            hub_token=self._arguments.secrets.hub_token is not None,
        )
        if deployment.workload == "pod":
            return core.Pod(name, metadata=head, spec=spec, opts=options)
        chosen = selector(deployment, RANK_COMPONENT, params.rank)
        return apps.StatefulSet(
            name,
            metadata=head,
            spec=apps.StatefulSetSpecArgs(
                replicas=1,
                service_name=deployment.rank_master_name,
                # A set in order never gives up a pod that is broken from birth for a mended one.
                pod_management_policy="Parallel",
                selector=meta.LabelSelectorArgs(match_labels=chosen),
                template=core.PodTemplateSpecArgs(
                    metadata=meta.ObjectMetaArgs(labels=head.labels), spec=spec
                ),
            ),
            opts=options,
        )

    def _trigger(self) -> pulumi.Output[str]:
        """The group's spec and its token: a rank that came back alone would read a new token, and
        the others would refuse it. A secret, as the token may be short enough to be guessed."""
        spec = spec_hash(self._arguments.group)

        def digest(token: str) -> str:
            return hashlib.sha256(f"{spec}\n{token}".encode()).hexdigest()

        return self._arguments.secrets.group_token.apply(digest)

    def _own_objects(self, params: RankParams, cluster: str) -> list[pulumi.Resource]:
        """What one rank has for itself: a claim on its device, a claim for its weights."""
        found: list[pulumi.Resource] = []
        if self._deployment.gpu_pinning == "dra":
            found.append(self._device_claim(params, cluster))
        if self._deployment.model_cache.mode == "own-claim":
            found.append(self._model_claim(params.rank, cluster))
        return found

    def _device_claim(self, params: RankParams, cluster: str) -> pulumi.Resource:
        """A template: a claim itself would be held by the pod that has to go after it."""
        name = rank_pod.device_claim_name(self._deployment, params.rank)
        uuid = json.dumps(params.device_uuid)  # quoted as CEL quotes
        expression = f'device.attributes["{_DEVICE_CLASS}"].uuid == {uuid}'
        options = pulumi.ResourceOptions.merge(
            self._options(cluster), pulumi.ResourceOptions(replace_on_changes=["spec"])
        )
        request = devices.DeviceRequestArgs(
            name=rank_pod.CLAIM,
            exactly=devices.ExactDeviceRequestArgs(
                device_class_name=_DEVICE_CLASS,
                selectors=[
                    devices.DeviceSelectorArgs(
                        cel=devices.CELDeviceSelectorArgs(expression=expression)
                    )
                ],
            ),
        )
        return devices.ResourceClaimTemplate(
            name,
            metadata=self._metadata(name),
            spec=devices.ResourceClaimTemplateSpecArgs(
                spec=devices.ResourceClaimSpecArgs(
                    devices=devices.DeviceClaimArgs(requests=[request])
                )
            ),
            opts=options,
        )

    def _model_claim(self, rank: int, cluster: str) -> pulumi.Resource:
        """Not waited for: many storage classes bind a claim only when its pod is scheduled."""
        deployment, cache = self._deployment, self._deployment.model_cache
        name = rank_pod.model_claim_name(deployment, rank)
        return core.PersistentVolumeClaim(
            name,
            metadata=metadata(
                deployment,
                name,
                deployment.namespace,
                RANK_COMPONENT,
                rank=rank,
                annotations=SKIP_AWAIT,
            ),
            spec=core.PersistentVolumeClaimSpecArgs(
                access_modes=["ReadWriteOnce"],
                storage_class_name=cache.storage_class or None,
                resources=core.VolumeResourceRequirementsArgs(
                    requests={"storage": str(cache.size)}
                ),
            ),
            opts=self._options(cluster),
        )
