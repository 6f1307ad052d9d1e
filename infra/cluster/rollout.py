"""An edit proved before it counts: the Job that hands the spec over and asks, then NAME-spec."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi_kubernetes.batch import v1 as batch
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.meta import v1 as meta

from contract.specs import INFERENCE_PORT, MASTER_HTTP_PORT, GroupSpec, render, spec_hash
from infra.cluster import labels
from infra.cluster.mounts import SECRET_FOLDER, SPEC_FOLDER, config_map_mount, secret_mount
from infra.cluster.objects import Clusters, Component
from infra.cluster.placement import Placement, tier_placement
from infra.cluster.pods import Container, pod_spec, python_module
from infra.cluster.rank_pod import GROUP_FILE, group_spec_name
from infra.cluster.secrets import StackSecrets
from infra.plan.process_specs import Addresses

SIGNING_KEY_FILE = "signing_key"
API_KEY_FILE = "api_key"
# As long as the longest of the other names at most.
_NAME_DIGITS = 8
_CORES = 0.25
_MEMORY = 256 * 2**20
# It ends by itself when nothing moves; this is for a pod that never starts. The provider counts it
# anew with each event.
_MOST = "24h"
# A Job that has not succeeded is made anew by the next update, where nothing else has changed too.
_REPLACE_UNREADY = {"pulumi.com/replaceUnready": "true"}


@dataclass(frozen=True)
class RolloutArgs:
    """`images` by tier. The question goes through all `tiers`: it is asked when they are as they
    are to be."""

    clusters: Clusters
    group: GroupSpec
    addresses: Addresses
    images: Mapping[Any, pulumi.Input[str]]
    secrets: StackSecrets
    tiers: Sequence[pulumi.Resource]


class Rollout(Component):
    """`job` has succeeded when the spec has answered; a master that starts reads it only then.

    The resources keep their names while the objects have the spec's hash in theirs: so the Job of
    another spec takes the place of this one, and that of a former spec runs again.
    """

    def __init__(
        self, name: str, args: RolloutArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("Rollout", name, args.clusters, opts, component=labels.ROLLOUT)
        self._args = args
        self._base = self._deployment.rollout_name
        self._hashed = f"{self._base}-{spec_hash(args.group)[:_NAME_DIGITS]}"
        self.job = self._job([self._wanted(), self._keys()])
        self._served()
        self.register_outputs({"spec_hash": spec_hash(args.group)})

    def _wanted(self) -> pulumi.Resource:
        return core.ConfigMap(
            self._base,
            metadata=self._metadata(self._hashed),
            data={GROUP_FILE: render(self._args.group)},
            opts=self._options(),
        )

    def _keys(self) -> pulumi.Resource:
        """Made of the group's token, which it never sees itself."""
        secrets = self._args.secrets
        keys = {SIGNING_KEY_FILE: secrets.signing_key}
        if self._with_api_key:
            keys[API_KEY_FILE] = secrets.rollout_key
        return self._secret(self._base, keys)

    def _served(self) -> pulumi.Resource:
        name = group_spec_name(self._deployment)
        return core.ConfigMap(
            name,
            metadata=self._metadata(name, component=labels.RANK_COMPONENT),
            data={GROUP_FILE: render(self._args.group)},
            opts=self._options([self.job]),
        )

    def _job(self, mounted: Sequence[pulumi.Resource]) -> batch.Job:
        head = self._metadata(self._hashed, annotations=_REPLACE_UNREADY)
        own = pulumi.ResourceOptions(
            replacement_trigger=self._trigger(),
            custom_timeouts=pulumi.CustomTimeouts(create=_MOST, update=_MOST, delete="2m"),
        )
        spec = pod_spec(
            containers=[self._container()],
            drain_s=0,
            placement=self._placement(),
            restart_policy="Never",
            image_pull_secrets=self._deployment.image_pull_secrets,
        )
        return batch.Job(
            self._base,
            metadata=head,
            spec=batch.JobSpecArgs(
                # Once: what failed for a reason fails again. A node that goes is no reason.
                backoff_limit=0,
                pod_failure_policy=batch.PodFailurePolicyArgs(
                    rules=[
                        batch.PodFailurePolicyRuleArgs(
                            action="Ignore",
                            on_pod_conditions=[
                                batch.PodFailurePolicyOnPodConditionsPatternArgs(
                                    type="DisruptionTarget", status="True"
                                )
                            ],
                        )
                    ]
                ),
                template=core.PodTemplateSpecArgs(
                    metadata=meta.ObjectMetaArgs(labels=head.labels), spec=spec
                ),
            ),
            opts=pulumi.ResourceOptions.merge(self._options([*mounted, *self._args.tiers]), own),
        )

    def _placement(self) -> Placement:
        """Where the tier that it has the image of may run."""
        if self._deployment.proxy_blocks:
            return tier_placement(self._deployment.proxy_blocks[0])
        common = self._deployment.placement.node_selector
        return Placement(node_selector=common, tolerations=self._deployment.tolerations)

    def _trigger(self) -> pulumi.Output[str]:
        """Where every rank is a new process, it is asked again. A secret as in SplitModel."""
        parts = pulumi.Output.all(self._args.secrets.group_token, self._args.images["runner"])
        return parts.apply(lambda both: hashlib.sha256("\n".join(both).encode()).hexdigest())

    def _container(self) -> Container:
        return Container(
            name="rollout",
            # Every image that may be there without the others has the module.
            image=self._args.images.get("proxy_block", self._args.images["runner"]),
            command=python_module("rollout", *self._arguments()),
            ports={},
            probes=None,
            cpu=_CORES,
            memory=_MEMORY,
            mounts=[config_map_mount(self._hashed), secret_mount(self._base)],
        )

    def _arguments(self) -> list[str]:
        deployment = self._deployment
        # The headless Service: a group that has failed takes another spec all the same.
        master = f"{deployment.rank_master_name}.{deployment.namespace}.svc"
        given = [
            *("--spec", f"{SPEC_FOLDER}/{GROUP_FILE}"),
            *("--signing-key-file", f"{SECRET_FOLDER}/{SIGNING_KEY_FILE}"),
            *("--master", f"http://{master}:{MASTER_HTTP_PORT}"),
            *("--stall-s", f"{deployment.timeouts.stall_s:g}"),
            *("--reason-file", "/dev/termination-log"),
        ]
        if deployment.proxy_blocks:
            block = deployment.proxy_blocks[0].block_id
            given += ["--block", self._args.addresses.block_urls[block], "--block-id", block]
        if deployment.inference_server.enabled and deployment.proxy_blocks:
            namespace = deployment.namespaces.inference_server
            server = f"{deployment.inference_server_name}.{namespace}.svc"
            expose = deployment.inference_server.expose
            port = expose.port if expose.mode == "load_balancer" else INFERENCE_PORT
            given += ["--inference-server", f"http://{server}:{port}"]
            if self._with_api_key:
                given += ["--api-key-file", f"{SECRET_FOLDER}/{API_KEY_FILE}"]
        return given

    @property
    def _with_api_key(self) -> bool:
        """Without keys the server lets everybody ask."""
        enabled = self._deployment.inference_server.enabled and self._deployment.proxy_blocks
        return bool(enabled) and self._args.secrets.api_keys is not None
