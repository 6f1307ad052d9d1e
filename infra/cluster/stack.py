"""A stack as the Pulumi program needs it: read and checked whole, before anything is created."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pulumi

from contract.faults import MISSING, Fault
from contract.signature import MANAGEMENT_OUTPUT
from contract.specs import GroupSpec, MasterSpec, StageSpec, spec_hash
from infra.cluster.fit import addresses, plan_on_clusters, rank_clusters
from infra.cluster.kubeconfig import PROJECT_ROOT, Kubeconfig, KubeconfigError, read_kubeconfig
from infra.cluster.live import (
    APPLIED_OUTPUT,
    applied_output,
    live_faults,
    read_live_stack,
    room_faults,
    room_for,
)
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

    `applied` is what will be in force.
    """

    deployment: DeploymentConfig
    plan: StackPlan
    secrets: StackSecrets
    kubeconfigs: Mapping[str, Kubeconfig]
    applied: Applied

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

    @property
    def url(self) -> str:
        """The inference server from outside the cluster; "" where the stack has none."""
        server = self.deployment.inference_server
        if not server.enabled:
            return ""
        host = server.public_host or self.kubeconfigs[self.deployment.cluster_of(0)].host
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{server.node_port}"

    def outputs(
        self, images: Mapping[Any, pulumi.Input[str]], served: Sequence[pulumi.CustomResource]
    ) -> dict[str, Any]:
        """What `pulumi stack output` shows; `images` are digest references by tier.

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
        if self.url:
            urls["inference_server"] = self.url
            block = self.deployment.proxy_blocks[0].block_id
            with_key = self.secrets.api_keys is not None
            found["curl"] = curl_line(self.url, block, with_key=with_key)
        return found


def read_stack() -> ClusterStack:
    """The stack that Pulumi runs, its plan shown; raises RunError with every fault."""
    source = f"stack {pulumi.get_stack()}"
    try:
        deployment, values, kubeconfigs = _read(source)
        live = read_live_stack()
        _refuse(source, live_faults(live, deployment))
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
    return ClusterStack(deployment, plan, secret_outputs(values), kubeconfigs, new)


def _refuse(source: str, faults: Iterable[Fault]) -> None:
    if found := list(faults):
        raise StackConfigError(source, found)


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
