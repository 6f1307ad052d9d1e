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
from pulumi_kubernetes.policy import v1 as policy
from pulumi_kubernetes.resource import v1 as devices

from contract.specs import (
    MASTER_HTTP_PORT,
    GroupSpec,
    KeeperSpec,
    MasterSpec,
    StageSpec,
    render,
    spec_hash,
)
from infra.cluster import rank_pod
from infra.cluster.fit import rank_clusters
from infra.cluster.labels import INSTEAD_OF, RANK_COMPONENT, RANK_MASTER, selector
from infra.cluster.objects import SKIP_AWAIT, Clusters, Component, waited_for
from infra.cluster.pod_template import template_metadata
from infra.cluster.room import rank_room
from infra.cluster.secrets import StackSecrets
from infra.stack.config import RankParams

# https://github.com/kubernetes-sigs/dra-driver-nvidia-gpu; a class has the driver's name too.
_DRIVER = "gpu.nvidia.com"


@dataclass(frozen=True)
class RankSpecs:
    """What the ranks read: what they serve, the master's own, and each stage's own; with another
    engine each keeper's."""

    group: GroupSpec
    master: MasterSpec
    stages: Sequence[StageSpec]
    keepers: Sequence[KeeperSpec] = ()


@dataclass(frozen=True)
class SplitModelArgs:
    """`image` is the runner's; `room` is what ranks that run have to go first for, and `stand_ins`
    are as in infra/cluster/live.py."""

    clusters: Clusters
    specs: RankSpecs
    image: pulumi.Input[str]
    secrets: StackSecrets
    room: str
    stand_ins: Mapping[str, str]


class SplitModel(Component):
    """`ranks` are the workloads in order: pods, or stateful sets of one pod each."""

    def __init__(
        self, name: str, args: SplitModelArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("SplitModel", name, args.clusters, opts, component=RANK_COMPONENT)
        self._args = args
        providers, place = args.clusters.providers.values(), args.clusters.place
        self._room = rank_room(args.room, providers, place)
        shared = {
            cluster: self._shared_objects(cluster) for cluster in rank_clusters(self._deployment)
        }
        self._services()
        if self._deployment.workload == "statefulset":
            for cluster in shared:
                self._disruption_budget(cluster)
        self.ranks = [
            self._rank(params, shared[self._deployment.cluster_of(params.rank)])
            for params in self._deployment.ranks
        ]
        self.register_outputs({"spec_hash": spec_hash(args.specs.group)})

    def _shared_objects(self, cluster: str) -> list[pulumi.Resource]:
        """What every rank of a cluster mounts and runs as; pods name them by plain strings."""
        deployment = self._deployment
        made: list[pulumi.Resource] = [
            self._secret(rank_pod.rank_secret_name(deployment), self._secret_files, cluster),
            self._account(rank_pod.rank_account_name(deployment), cluster),
        ]
        if deployment.model_cache.mode == "shared-claim":
            name = rank_pod.shared_claim_name(deployment)
            made.append(self._claim(name, deployment.model_cache, cluster=cluster, shared=True))
        return made

    @property
    def _secret_files(self) -> dict[str, pulumi.Output[str]]:
        secrets = self._args.secrets
        files = {
            rank_pod.GROUP_TOKEN_FILE: secrets.group_token,
            rank_pod.HUB_TOKEN_FILE: secrets.hub_token,
            rank_pod.S3_CREDENTIALS_FILE: secrets.s3_credentials,
        }
        return {name: value for name, value in files.items() if value is not None}

    def _services(self) -> None:
        """`rank-master` before the group is ready, for its ranks; `master-api` after, for users."""
        deployment = self._deployment
        chosen = selector(deployment, RANK_COMPONENT, 0)
        options = self._options()
        http = core.ServicePortArgs(name="http", port=MASTER_HTTP_PORT, target_port="http")
        group_port = deployment.common_params.master_port
        group = core.ServicePortArgs(name="group", port=group_port, target_port="group")
        core.Service(
            deployment.rank_master_name,
            metadata=self._metadata(deployment.rank_master_name, component=RANK_MASTER),
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
            metadata=self._metadata(
                deployment.master_api_name, component=RANK_MASTER, annotations=SKIP_AWAIT
            ),
            spec=core.ServiceSpecArgs(type="ClusterIP", selector=chosen, ports=[http]),
            opts=options,
        )

    def _disruption_budget(self, cluster: str) -> None:
        """One rank of a group at a time; of bare pods, which nothing brings back, none is asked."""
        name = rank_pod.rank_account_name(self._deployment)
        chosen = selector(self._deployment, RANK_COMPONENT)
        policy.PodDisruptionBudget(
            self._resource_name(name, cluster),
            metadata=self._metadata(name),
            spec=policy.PodDisruptionBudgetSpecArgs(
                max_unavailable=1,
                # Else one that is not ready is never evicted.
                unhealthy_pod_eviction_policy="AlwaysAllow",
                selector=meta.LabelSelectorArgs(match_labels=chosen),
            ),
            opts=self._options(cluster=cluster),
        )

    def _rank(
        self, params: RankParams, shared: Sequence[pulumi.Resource]
    ) -> core.Pod | apps.StatefulSet:
        """No rank depends on another: each gets ready only when all of them run."""
        deployment = self._deployment
        cluster = deployment.cluster_of(params.rank)
        name = deployment.rank_name(params.rank)
        before = [*shared, *self._own_objects(params, cluster), *self._room.markers]
        options = self._rank_options(params.rank, cluster, before)
        failed = self._args.stand_ins.get(name)
        own = {INSTEAD_OF: failed} if failed else None
        head = self._metadata(name, rank=params.rank, annotations=own)
        spec = rank_pod.rank_pod_spec(
            deployment,
            params,
            self._args.image,
            secret_files=self._secret_files.keys(),
        )
        if deployment.workload == "pod":
            of_pod = template_metadata(deployment.pod_template, head, own)
            of_pod.name, of_pod.namespace = head.name, head.namespace
            return core.Pod(name, metadata=of_pod, spec=spec, opts=options)
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
                    metadata=template_metadata(deployment.pod_template, head), spec=spec
                ),
            ),
            opts=options,
        )

    def _rank_options(
        self, rank: int, cluster: str, depends_on: Sequence[pulumi.Resource]
    ) -> pulumi.ResourceOptions:
        drain_s = self._deployment.common_params.request_deadline_s
        own = pulumi.ResourceOptions(
            replacement_trigger=self._trigger(rank),
            replace_with=[self._room.of(rank)],
            # Never "*": after a refresh it replaces every rank that is not ready at the moment.
            replace_on_changes=["spec", "metadata"],
            custom_timeouts=waited_for(self._deployment, drain_s),
        )
        return pulumi.ResourceOptions.merge(self._options(depends_on, cluster=cluster), own)

    def _trigger(self, rank: int) -> pulumi.Output[str]:
        """What a rank's processes read once, at their start: its own files, and the token.

        Nothing of what the group serves, which the ranks learn from the master.

        A rank that came back alone would read a new token, and the others would refuse it. A
        secret, as the token may be short enough to be guessed.
        """
        files = "".join(self._files(rank).values())
        # A pod keeps the claim that was made when it came, whatever its template says now.
        params = self._deployment.rank_params(rank)
        if params.device_class or params.device_selectors:
            files += json.dumps([params.device_class, params.device_selectors])

        def digest(token: str) -> str:
            return hashlib.sha256(f"{files}\n{token}".encode()).hexdigest()

        return self._args.secrets.group_token.apply(digest)

    def _files(self, rank: int) -> dict[str, str]:
        """What a rank's processes are started with, whatever the group serves."""
        if keepers := self._args.specs.keepers:
            return {rank_pod.KEEPER_FILE: render(keepers[rank])}
        files = {rank_pod.STAGE_FILE: render(self._args.specs.stages[rank])}
        if rank == 0:
            files[rank_pod.MASTER_FILE] = render(self._args.specs.master)
        return files

    def _own_objects(self, params: RankParams, cluster: str) -> list[pulumi.Resource]:
        """What one rank has for itself: its file, claims on its device and for its weights."""
        name = self._deployment.rank_name(params.rank)
        found: list[pulumi.Resource] = [self._config_map(name, self._files(params.rank), cluster)]
        if self._deployment.gpu_pinning == "dra":
            found.append(self._device_claim(params, cluster))
        if self._deployment.model_cache.mode == "own-claim":
            name = rank_pod.model_claim_name(self._deployment, params.rank)
            cache = self._deployment.model_cache
            found.append(self._claim(name, cache, rank=params.rank, cluster=cluster))
        return found

    def _device_claim(self, params: RankParams, cluster: str) -> pulumi.Resource:
        """A template: a claim itself would be held by the pod that has to go after it."""
        name = rank_pod.device_claim_name(self._deployment, params.rank)
        expressions = list(params.device_selectors)
        if params.device_uuid:
            uuid = json.dumps(params.device_uuid)  # quoted as CEL quotes
            expressions.insert(0, f'device.attributes["{_DRIVER}"].uuid == {uuid}')
        options = pulumi.ResourceOptions.merge(
            self._options(cluster=cluster), pulumi.ResourceOptions(replace_on_changes=["spec"])
        )
        count = self._deployment.devices_per_rank
        request = devices.DeviceRequestArgs(
            name=rank_pod.CLAIM,
            exactly=devices.ExactDeviceRequestArgs(
                device_class_name=params.device_class or _DRIVER,
                count=count if count > 1 else None,
                selectors=[
                    devices.DeviceSelectorArgs(cel=devices.CELDeviceSelectorArgs(expression=item))
                    for item in expressions
                ]
                or None,
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
