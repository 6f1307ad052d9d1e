"""What the engine's state holds of this stack before the program runs.

The program asks the engine for its own stack, as it would for another one: there is no second
engine, and nothing is asked of a cluster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pulumi
from pulumi.runtime import invoke

from contract.faults import MISSING, Fault
from infra.cluster.cluster_lookup import FailedPod
from infra.cluster.fit import rank_clusters
from infra.cluster.kubeconfig import KubeconfigError
from infra.cluster.labels import INSTEAD_OF, RETAINED
from infra.cluster.objects import Place
from infra.cluster.room import FIRST_ROOM, ROOM
from infra.plan.applied import Applied, read_applied
from infra.plan.edits import wants_room
from infra.stack.config import DeploymentConfig

APPLIED_OUTPUT = "applied"
_READ_STATE = "pulumi:pulumi:readStackResourceOutputs"
COMPONENT = "splitstack:index:SplitStack"
_MODEL = "splitstack:deployment:SplitModel"
_WORKLOADS = {"kubernetes:core/v1:Pod": "pod", "kubernetes:apps/v1:StatefulSet": "statefulset"}
_SET_WORKLOAD = "pulumi config set --path 'splitstack:deployment.workload'"


@dataclass(frozen=True)
class LiveStack:
    """`ranks` maps each rank's name to its `workload`; empty before the first `up`.

    `stand_ins` maps the name of a rank's pod to the uid of the failed one in whose place it came.
    `applied` None: no `up` of this version has come to its end. `room` None: no rank was made by a
    version that can put ranks away before others come. `namespaces` are those that this stack has
    made and would delete.
    """

    applied: Applied | None = None
    ranks: Mapping[str, str] = field(default_factory=dict)
    room: str | None = None
    namespaces: tuple[str, ...] = ()
    stand_ins: Mapping[str, str] = field(default_factory=dict)


def read_live_stack(deployment_name: str, place: Place) -> LiveStack:
    """Of the stack that Pulumi runs, as its last update left it; of the one component of it that
    is the place, which now is to have that deployment_name."""
    resources = list(_resources_within(place))
    before = _read_applied(resources, place)
    names = {deployment_name, before.stack["deployment_name"] if before else deployment_name}
    ranks: dict[str, str] = {}
    namespaces: list[str] = []
    stand_ins: dict[str, str] = {}
    room = None
    for kinds, found, resource in resources:
        parent, kind = ["", *kinds][-2:]
        if parent == _MODEL and kind in _WORKLOADS:
            if place.component and found.rpartition("-rank-")[0] not in names:
                continue  # of another component
            ranks[found] = _WORKLOADS[kind]
            if uid := _annotations(resource).get(INSTEAD_OF):
                stand_ins[found] = uid
        elif kind == "kubernetes:core/v1:Namespace" and RETAINED not in _annotations(resource):
            name = resource["outputs"].get("metadata", {}).get("name", found)
            if found.startswith(f"{place.prefix}{name}") or not place.component:
                namespaces.append(name)
        elif kind == "pulumi:index:Stash" and found == f"{place.prefix}{ROOM}":
            room = resource["outputs"].get("output")
    return LiveStack(before, ranks, room, tuple(namespaces), stand_ins)


def _resources_within(place: Place) -> Iterator[tuple[list[str], str, Mapping[str, Any]]]:
    """(types of its parents and its own, name, state) of each: of the components all that there
    are, since a URN does not have the names of parents."""
    name = f"{pulumi.get_organization()}/{pulumi.get_project()}/{pulumi.get_stack()}"
    for urn, resource in _resources(name).items():
        types, found = urn.split("::", 3)[2:]
        kinds = types.split("$")
        if not place.component or COMPONENT in kinds:
            yield kinds, found, resource


def _read_applied(
    resources: Iterable[tuple[list[str], str, Mapping[str, Any]]], place: Place
) -> Applied | None:
    for kinds, found, resource in resources:
        is_ours = kinds[-1] == COMPONENT and found == place.component
        if is_ours if place.component else kinds[-1] == "pulumi:pulumi:Stack":
            text = resource["outputs"].get(APPLIED_OUTPUT)
            return read_applied(text) if text else None
    return None


def stack_outputs(name: str) -> Mapping[str, Any]:
    """Of another stack, secrets in the clear; raises KubeconfigError where it cannot be read."""
    try:
        resources = _resources(name)
    except Exception as error:  # whatever the engine's answer is made into
        raise KubeconfigError(f"stack {name} cannot be read: {error}") from error
    for urn, resource in resources.items():
        if urn.split("::")[2] == "pulumi:pulumi:Stack":
            return dict(resource["outputs"])
    raise KubeconfigError(f"stack {name} has no outputs: bring it up first")


def _resources(stack: str) -> Mapping[str, Any]:
    """By URN, as its last update left them."""
    found: Mapping[str, Any] = invoke(_READ_STATE, {"stackName": stack}).value["outputs"]
    return found


def _annotations(resource: Mapping[str, Any]) -> Mapping[str, str]:
    return (resource["outputs"].get("metadata") or {}).get("annotations") or {}


def stand_ins(
    live: LiveStack, deployment: DeploymentConfig, failed: Iterable[FailedPod]
) -> dict[str, str]:
    """The uid of the failed pod in whose place each rank's comes, by the rank's name.

    Another uid is another pod: so what a node evicted goes by an ordinary replacement, which the
    preview shows. What came in the place of one stays. Sets need none: they do so by themselves.
    """
    wanted = _wanted(deployment)
    found = dict(live.stand_ins) | {pod.name: pod.uid for pod in failed}
    stay = {name for name, kind in live.ranks.items() if kind == "pod" == wanted.get(name)}
    return {name: uid for name, uid in found.items() if name in stay}


def live_faults(live: LiveStack, deployment: DeploymentConfig) -> Iterator[Fault]:
    """What cannot be done to the ranks that run, each with what to do instead."""
    kinds, wanted = set(live.ranks.values()), _wanted(deployment)
    other_kinds = bool(kinds - set(wanted.values()))
    if other_kinds and "workload" not in deployment.model_fields_set:
        first = "" if live.room is not None else "that, `pulumi up`, then "
        rule = (
            "is statefulset where it is not given, and the ranks that run are pods. To keep them: "
            f"`{_SET_WORKLOAD} pod`. To have them replaced, with the model away meanwhile: "
            f"{first}`{_SET_WORKLOAD} statefulset`"
        )
        yield Fault("workload", MISSING, rule)
    elif live.ranks and live.room is None:
        before = (
            "the ranks that run were made by an older version, and cannot be put away before "
            f"others come: `pulumi up` once with workload: {min(kinds)} and "
            f"nnodes: {len(live.ranks)}, then this edit"
        )
        if other_kinds:
            yield Fault("workload", deployment.workload, before)
        elif live.ranks.keys() - wanted.keys():
            yield Fault("nnodes", deployment.nnodes, before)
    if live.namespaces and not deployment.namespaces.create:
        names = ", ".join(dict.fromkeys(live.namespaces))
        rule = (
            f"would delete {names}, which this stack has made, with everything that is in them. To "
            "have them stay: `pulumi up` once with namespaces.create: true and namespaces.retain: "
            "true, then this edit"
        )
        yield Fault("namespaces.create", False, rule)


def room_for(live: LiveStack, deployment: DeploymentConfig, new: Applied) -> str:
    """What every rank has to go first for; the same as before where none has to.

    The engine deletes last, so what a rank that goes holds is not free for one that comes or
    grows. Made of what was in force, it is the same when an update that failed is repeated or
    mended: what has come since stays.
    """
    wanted, elsewhere = _wanted(deployment), _on_other_clusters(live, deployment)
    going = [
        name
        for name, kind in live.ranks.items()
        if wanted.get(name) != kind and name not in elsewhere
    ]
    coming = [name for name, kind in wanted.items() if live.ranks.get(name) != kind]
    if going and (coming or live.applied is None or wants_room(live.applied, new)):
        before = live.applied.to_text() if live.applied else ""
        return hashlib.sha256(f"{before}{sorted(wanted)}".encode()).hexdigest()[:16]
    return live.room or FIRST_ROOM


def room_faults(live: LiveStack, deployment: DeploymentConfig, room: str) -> Iterator[Fault]:
    """The engine can put away first only what is on clusters that the program still names."""
    elsewhere = _on_other_clusters(live, deployment)
    if room != (live.room or FIRST_ROOM) and elsewhere:
        rule = (
            f"no longer has a rank where {', '.join(elsewhere)} runs, and other ranks have to go "
            "before what this edit asks for can come: leave that cluster in an `up` of its own"
        )
        yield Fault("cluster_id", deployment.cluster_id, rule)


def _on_other_clusters(live: LiveStack, deployment: DeploymentConfig) -> list[str]:
    """The ranks that run where this deployment has none."""
    if live.applied is None:
        return []
    used, name = rank_clusters(deployment), live.applied.stack["deployment_name"]
    return [
        f"{name}-rank-{rank}"
        for rank, values in enumerate(live.applied.ranks)
        if values["cluster_id"] not in used
    ]


def _wanted(deployment: DeploymentConfig) -> dict[str, str]:
    names = (deployment.rank_name(rank) for rank in range(deployment.nnodes))
    return dict.fromkeys(names, deployment.workload)


def applied_output(applied: Applied, served: list[pulumi.Output[Any]]) -> pulumi.Output[str]:
    """Kept only once everything in `served` is there; a secret, as the stack file's values are."""
    text = applied.to_text()
    return pulumi.Output.secret(pulumi.Output.all(*served).apply(lambda _: text))
