"""One proxy block: its instances, the Service by which they are found, and their number."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.autoscaling import v2 as autoscaling
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.meta import v1 as meta
from pulumi_kubernetes.policy import v1 as policy

from contract.names import BLOCK_ID_ANNOTATION, COMPONENT_ANNOTATION, LABELS_ANNOTATION
from contract.signature import MANAGEMENT_OUTPUT
from contract.specs import ProxySpec, render
from infra.cluster import labels
from infra.cluster.ca_bundle import bundle_environment, bundle_mounts
from infra.cluster.mounts import SECRET_FOLDER, SPEC_FOLDER, Mount, config_map_mount, secret_mount
from infra.cluster.objects import Clusters
from infra.cluster.placement import tier_placement
from infra.cluster.pods import Container, Pace, http_probes, python_module
from infra.cluster.session_store import PASSWORD_FILE, SessionStore, histories_mount
from infra.cluster.tier import QUIET_S, STARTUP_S, Tier, TierPods
from infra.plan.process_specs import Addresses, proxy_spec
from infra.stack.placement_config import HOSTNAME
from infra.stack.session_url import session_url
from infra.stack.tier_config import ProxyBlock

SPEC_FILE = "proxy.json"
HISTORIES_FOLDER = "/var/lib/splitstack"
# Its file has the name of the stack's output, and a folder beside the store's password.
MANAGEMENT_FOLDER = "/run/secrets/splitstack-management"


@dataclass(frozen=True)
class ProxyBlockArgs:
    """`store` is waited for; `management_key` is what callers of /management prove."""

    clusters: Clusters
    block: ProxyBlock
    addresses: Addresses
    image: pulumi.Input[str]
    store: SessionStore
    management_key: pulumi.Output[str]


class ProxyBlockTier(Tier):
    """`name` is that of its Deployment, Service and everything else of the block."""

    def __init__(
        self, name: str, args: ProxyBlockArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        deployment = args.clusters.deployment
        super().__init__(
            "ProxyBlock",
            name,
            args.clusters,
            opts,
            name=deployment.proxy_name(args.block.block_id),
            namespace=deployment.namespaces.blocks,
            component=labels.PROXY_BLOCK,
            block_id=args.block.block_id,
        )
        self._args, self._block = args, args.block
        self._keeps_histories = deployment.session_store.mode == "sqlite"
        spec = proxy_spec(
            deployment,
            args.block,
            args.addresses,
            sessions_path=f"{HISTORIES_FOLDER}/sessions.sqlite3",
            sessions_url=session_url(deployment),
        )
        self._found_by()
        self._workload(self._pods(spec), self._mounted(spec))
        if self._is_scaled:
            self._autoscaler()
        self._disruption_budget()
        self.register_outputs({"name": self.name})

    @property
    def _is_scaled(self) -> bool:
        return self._block.max_instances > self._block.min_instances

    @property
    def _has_claim(self) -> bool:
        return self._keeps_histories and self._deployment.session_store.size is not None

    def _mounted(self, spec: ProxySpec) -> list[pulumi.Resource]:
        """What the pods mount, which must be there before them."""
        made: list[pulumi.Resource] = [
            self._config_map(self.name, {SPEC_FILE: render(spec)}),
            self._secret(self.name, {MANAGEMENT_OUTPUT: self._args.management_key}),
        ]
        if self._has_claim:
            made.append(self._claim(self.name, self._deployment.session_store))
        return [*made, self._args.store]

    def _found_by(self) -> None:
        """The Service by which the inference server finds the block."""
        annotations = {
            BLOCK_ID_ANNOTATION: self._block.block_id,
            COMPONENT_ANNOTATION: self._block.component,
            LABELS_ANNOTATION: json.dumps(self._block.labels, sort_keys=True),
        }
        port = core.ServicePortArgs(name="http", port=self._block.port, target_port="http")
        self._service(port, annotations=annotations)

    def _pods(self, spec: ProxySpec) -> TierPods:
        return TierPods(
            container=self._container(),
            files=render(spec),
            drain_s=spec.request_deadline_s,
            # With an autoscaler a number of ours would undo its own at each `up`.
            replicas=None if self._is_scaled else self._block.min_instances,
            # SQLite's file has one writer, and a claim one node.
            alone=self._has_claim,
            placement=tier_placement(
                self._block, node=self._block.node_id, topology_spread=[self._spread()]
            ),
            template=self._block.pod_template,
        )

    def _container(self) -> Container:
        probe = self._block.probe
        pace = Pace(period_s=probe.period_s, failures=probe.failure_threshold)
        mounts: list[Mount] = [
            config_map_mount(self.name),
            secret_mount(self.name, MANAGEMENT_FOLDER, volume="management"),
        ]
        command = python_module("proxy_block", "--spec", f"{SPEC_FOLDER}/{SPEC_FILE}")
        # Read again for each proof: a new group token needs no new pod.
        command += ("--management-key-file", f"{MANAGEMENT_FOLDER}/{MANAGEMENT_OUTPUT}")
        if self._keeps_histories:
            mounts.append(histories_mount(self._deployment, self.name, HISTORIES_FOLDER))
        if self._args.store.password_secret:
            mounts.append(secret_mount(self._args.store.password_secret))
            command += ("--session-password-file", f"{SECRET_FOLDER}/{PASSWORD_FILE}")
        environment = {}
        if self._deployment.session_store.mode == "url":
            mounts += bundle_mounts(self._deployment)
            environment = bundle_environment(self._deployment)
        return Container(
            name="proxy-block",
            image=self._args.image,
            command=command,
            ports={"http": self._block.port},
            # Whether the master behind is ready is no reason to take the proxy away: it says so.
            probes=http_probes(
                self._block.port,
                startup_s=STARTUP_S,
                readiness_path="/readyz?self",
                readiness=pace,
                liveness=pace,
            ),
            cpu=self._block.cpu,
            quiet_s=QUIET_S,
            memory=self._block.memory,
            environment=environment,
            mounts=mounts,
        )

    def _spread(self) -> core.TopologySpreadConstraintArgs:
        return core.TopologySpreadConstraintArgs(
            max_skew=1,
            topology_key=HOSTNAME,
            when_unsatisfiable="ScheduleAnyway",
            label_selector=meta.LabelSelectorArgs(match_labels=self._selector),
        )

    def _autoscaler(self) -> None:
        autoscaler = self._block.autoscaler
        autoscaling.HorizontalPodAutoscaler(
            self.name,
            metadata=self._metadata(self.name),
            spec=autoscaling.HorizontalPodAutoscalerSpecArgs(
                scale_target_ref=autoscaling.CrossVersionObjectReferenceArgs(
                    api_version="apps/v1", kind="Deployment", name=self.name
                ),
                min_replicas=self._block.min_instances,
                max_replicas=self._block.max_instances,
                metrics=[
                    autoscaling.MetricSpecArgs(
                        type="Resource",
                        resource=autoscaling.ResourceMetricSourceArgs(
                            name="cpu",
                            target=autoscaling.MetricTargetArgs(
                                type="Utilization", average_utilization=autoscaler.cpu_percent
                            ),
                        ),
                    )
                ],
                behavior=autoscaling.HorizontalPodAutoscalerBehaviorArgs(
                    scale_up=autoscaling.HPAScalingRulesArgs(
                        stabilization_window_seconds=autoscaler.scale_up_window_s
                    ),
                    scale_down=autoscaling.HPAScalingRulesArgs(
                        stabilization_window_seconds=autoscaler.scale_down_window_s
                    ),
                ),
            ),
            opts=self._options(),
        )

    def _disruption_budget(self) -> None:
        policy.PodDisruptionBudget(
            self.name,
            metadata=self._metadata(self.name),
            spec=policy.PodDisruptionBudgetSpecArgs(
                # One at a time, the only one too: a node must be drainable.
                max_unavailable=1,
                # Else one that is not ready is never evicted.
                unhealthy_pod_eviction_policy="AlwaysAllow",
                selector=meta.LabelSelectorArgs(match_labels=self._selector),
            ),
            opts=self._options(),
        )
