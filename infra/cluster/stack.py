"""A stack as the Pulumi program needs it: read and checked whole, before anything is created."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import pulumi

from contract.faults import Fault
from contract.signature import MANAGEMENT_OUTPUT
from contract.specs import GroupSpec, KeeperSpec, MasterSpec, StageSpec, spec_hash
from infra.cluster.cluster_lookup import (
    FailedPod,
    failed_pods,
    lacks_secret,
    node_address,
    node_architectures,
)
from infra.cluster.fit import addresses, plan_on_clusters
from infra.cluster.front_url import forward_line, front_url, needs_forward
from infra.cluster.kubeconfig import Kubeconfig
from infra.cluster.labels import RANK_COMPONENT, selector
from infra.cluster.live import (
    APPLIED_OUTPUT,
    applied_output,
    live_faults,
    read_live_stack,
    room_faults,
    room_for,
    stand_ins,
)
from infra.cluster.objects import OWN_PROGRAM, Place
from infra.cluster.platforms import build_platform, platform_faults
from infra.cluster.rank_pod import CACHE_FOLDER, ENGINE_CACHE
from infra.cluster.secrets import StackSecrets, secret_outputs
from infra.cluster.stack_inputs import StackInputs, config_inputs
from infra.plan.applied import Applied, applied
from infra.plan.edits import sort_edit
from infra.plan.lock import model_reader
from infra.plan.process_specs import Addresses, group_spec, keeper_spec, master_spec, stage_spec
from infra.plan.report import plan_to_json, render_edit, render_plan
from infra.plan.stack_plan import StackPlan
from infra.stack.config import DeploymentConfig
from infra.stack.curl_line import curl_line
from infra.stack.faults import StackConfigError


@dataclass(frozen=True)
class ClusterStack:
    """`deployment` names cores and memory for every rank; `kubeconfigs` has one per cluster, or
    `later` one that is not known yet.

    `applied` is what will be in force. `node` is the address of one of rank 0's cluster, "" where
    it is not known or not needed. `stand_ins` as in infra/cluster/live.py. `platform` is what
    images are built for.
    """

    deployment: DeploymentConfig
    plan: StackPlan
    secrets: StackSecrets
    kubeconfigs: Mapping[str, Kubeconfig]
    applied: Applied
    node: str = ""
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    platform: str = ""
    later: Mapping[str, pulumi.Output[str]] = field(default_factory=dict)

    @cached_property
    def addresses(self) -> Addresses:
        """Where the processes meet."""
        return addresses(self.deployment)

    @cached_property
    def group(self) -> GroupSpec:
        """What is to be served."""
        return group_spec(self.deployment, self.plan.ranks, commit=self.plan.commit)

    @cached_property
    def master(self) -> MasterSpec:
        """The master's own file."""
        return master_spec(self.deployment, self.addresses, model_cache=CACHE_FOLDER)

    @cached_property
    def stages(self) -> list[StageSpec]:
        """Each rank's own file."""
        return [
            stage_spec(self.deployment, params, self.addresses, model_cache=CACHE_FOLDER)
            for params in self.deployment.ranks
        ]

    @cached_property
    def keepers(self) -> list[KeeperSpec]:
        """Each rank's own file, with another engine."""
        if self.deployment.platform != "vllm":
            return []
        return [
            keeper_spec(
                self.deployment,
                params,
                self.addresses,
                model_cache=CACHE_FOLDER,
                engine_cache=ENGINE_CACHE,
                whole_shm=True,
            )
            for params in self.deployment.ranks
        ]

    def outputs(
        self,
        images: Mapping[Any, pulumi.Input[str]],
        served: Sequence[pulumi.CustomResource],
        balancer: pulumi.Input[str],
    ) -> dict[str, Any]:
        """What `pulumi stack output` shows; `images` are digest references by tier, `balancer` is
        the address of the inference server's load balancer.

        They are the old ones until all of `served` is there.
        """
        parts = plan_to_json(self.plan)["ranks"]
        keys = ("rank", "node", "devices", "layers")
        urls: dict[str, Any] = {
            "master": self.addresses.master_url,
            "blocks": dict(self.addresses.block_urls),
        }
        found: dict[str, Any] = {
            "images": dict(images),
            "spec_hash": spec_hash(self.group),
            "ranks": [{key: part[key] for key in keys} for part in parts],
            "urls": urls,
            MANAGEMENT_OUTPUT: self.secrets.management_key,
            APPLIED_OUTPUT: applied_output(self.applied, [item.id for item in served]),
        }
        if self.deployment.inference_server.enabled:
            url = front_url(self.deployment, self.node, balancer)
            urls["inference_server"] = url
            block = self.deployment.proxy_blocks[0].block_id
            asked = partial(curl_line, block_id=block, with_key=self.secrets.api_keys is not None)
            found["curl"] = pulumi.Output.from_input(url).apply(asked)
            if needs_forward(self.deployment, self.node):
                found["port_forward"] = forward_line(self.deployment)
        return found


def read_stack() -> ClusterStack:
    """The stack that Pulumi runs, its plan shown; raises RunError with every fault."""
    try:
        return make_stack(config_inputs(), OWN_PROGRAM)
    except StackConfigError as error:
        raise pulumi.RunError(str(error)) from None


def make_stack(inputs: StackInputs, place: Place) -> ClusterStack:
    """A stack checked whole, its plan shown; raises StackConfigError with every fault."""
    deployment, kubeconfigs = inputs.checked()
    values = inputs.secrets
    live = read_live_stack(deployment.deployment_name, place)
    _refuse(inputs.source, live_faults(live, deployment))
    architectures = _architectures(deployment, kubeconfigs)
    _refuse(inputs.source, platform_faults(deployment, architectures))
    reader = model_reader(inputs.lock, values.get("hub_token", "").strip())
    deployment, plan = plan_on_clusters(deployment, reader, live.applied)
    new = applied(deployment, plan.ranks, values["group_token"])
    room = room_for(live, deployment, new)
    _refuse(inputs.source, room_faults(live, deployment, room))
    # With the empty line the table begins below the name that Pulumi puts before a message.
    pulumi.log.info(f"\n{render_plan(plan)}\n")
    changes = sort_edit(live.applied, new) if live.applied else []
    if changes:
        pulumi.log.info(f"\n{render_edit(changes, deployment.nnodes)}\n")
    failed = _failed_ranks(deployment, kubeconfigs) if live.ranks else []
    return ClusterStack(
        deployment,
        plan,
        secret_outputs(values),
        kubeconfigs,
        replace(new, room=room),
        _looked_up(deployment, kubeconfigs.get(deployment.cluster_of(0))),
        stand_ins(live, deployment, failed),
        build_platform(deployment, architectures),
        inputs.later,
    )


def _architectures(
    deployment: DeploymentConfig, kubeconfigs: Mapping[str, Kubeconfig]
) -> frozenset[str]:
    """Of all nodes, where images are built and the file does not say for what."""
    if deployment.images.builder != "docker" or deployment.images.platform:
        return frozenset()
    return frozenset().union(*map(node_architectures, kubeconfigs.values()))


def _looked_up(deployment: DeploymentConfig, kubeconfig: Kubeconfig | None) -> str:
    """The address of a node where it is needed; warns of a certificate that is not there."""
    if kubeconfig is None:
        return ""
    _warn_of_certificate(deployment, kubeconfig)
    server = deployment.inference_server
    at_node = server.enabled and server.expose.mode == "node_port" and not server.public_host
    return node_address(kubeconfig) if at_node else ""


def _failed_ranks(
    deployment: DeploymentConfig, kubeconfigs: Mapping[str, Kubeconfig]
) -> list[FailedPod]:
    """Bare pods that nobody takes away: what has become of them is told."""
    if deployment.workload != "pod":
        return []
    chosen = selector(deployment, RANK_COMPONENT)
    found = [
        pod
        for kubeconfig in kubeconfigs.values()
        for pod in failed_pods(kubeconfig, deployment.namespace, chosen)
    ]
    for pod in found:
        pulumi.log.info(f"{pod.name} has failed ({pod.reason or 'no reason given'}): another comes")
    return found


def _refuse(source: str, faults: Iterable[Fault]) -> None:
    if found := list(faults):
        raise StackConfigError(source, found)


def _warn_of_certificate(deployment: DeploymentConfig, kubeconfig: Kubeconfig) -> None:
    """No fault: a certificate's Secret may be made once its Ingress or Gateway is there."""
    server = deployment.inference_server
    secret = server.expose.tls_secret if server.enabled else ""
    namespace = deployment.namespaces.inference_server
    if secret and lacks_secret(kubeconfig, namespace, secret):
        pulumi.log.warn(
            f"inference_server.expose.tls_secret: there is no Secret {secret} in namespace "
            f"{namespace} yet; clients get no certificate of yours before it is there"
        )
