"""A stack as the Pulumi program needs it: read and checked whole, before anything is created."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import pulumi

from contract.faults import MISSING, Fault
from contract.signature import MANAGEMENT_OUTPUT
from contract.specs import GroupSpec, MasterSpec, StageSpec, spec_hash
from infra.cluster.cluster_lookup import (
    FailedPod,
    failed_pods,
    lacks_secret,
    node_address,
    node_architectures,
)
from infra.cluster.fit import addresses, plan_on_clusters, rank_clusters
from infra.cluster.front_url import forward_line, front_url, needs_forward
from infra.cluster.kubeconfig import PROJECT_ROOT, Kubeconfig, KubeconfigError, read_kubeconfig
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
from infra.cluster.platforms import build_platform, platform_faults
from infra.cluster.rank_pod import CACHE_FOLDER
from infra.cluster.secrets import (
    NAMESPACE,
    StackSecrets,
    access_faults,
    read_secrets,
    secret_outputs,
)
from infra.plan.applied import Applied, applied
from infra.plan.edits import sort_edit
from infra.plan.lock import model_reader
from infra.plan.process_specs import Addresses, group_spec, master_spec, stage_spec
from infra.plan.report import plan_to_json, render_edit, render_plan
from infra.plan.stack_plan import StackPlan
from infra.stack.config import DEPLOYMENT_KEY, DeploymentConfig
from infra.stack.curl_line import curl_line
from infra.stack.faults import StackConfigError
from infra.stack.file import lock_name, parse_deployment


@dataclass(frozen=True)
class ClusterStack:
    """`deployment` names cores and memory for every rank; `kubeconfigs` has one per cluster.

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
    source = f"stack {pulumi.get_stack()}"
    try:
        deployment, values, kubeconfigs = _read(source)
        live = read_live_stack()
        _refuse(source, live_faults(live, deployment))
        architectures = _architectures(deployment, kubeconfigs)
        _refuse(source, platform_faults(deployment, architectures))
        lock = PROJECT_ROOT / "stacks" / lock_name(pulumi.get_stack())
        reader = model_reader(lock, values.get("hub_token", "").strip())
        deployment, plan = plan_on_clusters(deployment, reader, live.applied)
        new = applied(deployment, plan.ranks, values["group_token"])
        room = room_for(live, deployment, new)
        _refuse(source, room_faults(live, deployment, room))
    except StackConfigError as error:
        raise pulumi.RunError(str(error)) from None
    # With the empty line the table begins below the name that Pulumi puts before a message.
    pulumi.log.info(f"\n{render_plan(plan)}\n")
    changes = sort_edit(live.applied, new) if live.applied else []
    if changes:
        pulumi.log.info(f"\n{render_edit(changes, deployment.nnodes)}\n")
    new = replace(new, room=room)
    kubeconfig = kubeconfigs[deployment.cluster_of(0)]
    _warn_of_certificate(deployment, kubeconfig)
    server = deployment.inference_server
    at_node = server.enabled and server.expose.mode == "node_port" and not server.public_host
    node = node_address(kubeconfig) if at_node else ""
    failed = _failed_ranks(deployment, kubeconfigs) if live.ranks else []
    return ClusterStack(
        deployment,
        plan,
        secret_outputs(values),
        kubeconfigs,
        new,
        node,
        stand_ins(live, deployment, failed),
        build_platform(deployment, architectures),
    )


def _architectures(
    deployment: DeploymentConfig, kubeconfigs: Mapping[str, Kubeconfig]
) -> frozenset[str]:
    """Of all nodes, where images are built and the file does not say for what."""
    if deployment.images.builder != "docker" or deployment.images.platform:
        return frozenset()
    return frozenset().union(*map(node_architectures, kubeconfigs.values()))


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


def _read(source: str) -> tuple[DeploymentConfig, dict[str, str], dict[str, Kubeconfig]]:
    faults: list[Fault] = []
    deployment = None
    kubeconfigs: dict[str, Kubeconfig] = {}
    try:
        mapping = pulumi.Config(NAMESPACE).require_object("deployment")
        deployment = parse_deployment(mapping, on_clusters=True)
    except pulumi.ConfigMissingError:
        rule = "is required; stacks/Pulumi.kind.yaml shows one"
        raise StackConfigError(source, [Fault(DEPLOYMENT_KEY, MISSING, rule)]) from None
    except StackConfigError as error:
        faults += error.faults
    else:
        kubeconfigs, problems = _read_kubeconfigs(deployment)
        faults += problems
    values, problems = read_secrets()
    faults += problems
    if deployment is not None:
        faults += access_faults(deployment, values)
    if deployment is None or faults:
        raise StackConfigError(source, faults)
    return deployment, values, kubeconfigs


def _read_kubeconfigs(
    deployment: DeploymentConfig,
) -> tuple[dict[str, Kubeconfig], list[Fault]]:
    found, faults = {}, []
    for name in rank_clusters(deployment):
        cluster = deployment.clusters[name]
        try:
            found[name] = read_kubeconfig(cluster, PROJECT_ROOT)
        except KubeconfigError as error:
            faults.append(Fault(f"clusters.{name}.kubeconfig", cluster.kubeconfig, str(error)))
    return found, faults
