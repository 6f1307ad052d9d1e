"""Where the scheduler may put a pod, as its spec says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.meta import v1 as meta

from infra.stack.placement_config import HOSTNAME, NodeExpression, Toleration, Topology
from infra.stack.pod_config import Pods

# Of a preference that is the only one of its kind.
_WEIGHT = 100


@dataclass(frozen=True)
class Placement:
    """Everything empty leaves it free.

    Pods with the labels `group` share a domain of `topology`.
    """

    node: str = ""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    node_affinity: Sequence[NodeExpression] = ()
    topology: Topology | None = None
    group: Mapping[str, str] = field(default_factory=dict)
    runtime_class: str = ""
    priority_class: str = ""
    tolerations: Sequence[Toleration] = ()
    topology_spread: Sequence[core.TopologySpreadConstraintArgs] = ()


def tier_placement(
    pods: Pods, *, node: str = "", topology_spread: Sequence[core.TopologySpreadConstraintArgs] = ()
) -> Placement:
    """Of a tier around the ranks."""
    return Placement(
        node=node,
        node_selector=pods.node_selector,
        tolerations=pods.tolerations,
        topology_spread=topology_spread,
    )


def affinity(where: Placement) -> core.AffinityArgs | None:
    """None where nothing asks for one."""
    nodes, pods = _node_affinity(where), _pod_affinity(where)
    return core.AffinityArgs(node_affinity=nodes, pod_affinity=pods) if nodes or pods else None


def toleration(item: Toleration) -> core.TolerationArgs:
    """As the API server writes it: without what is empty."""
    return core.TolerationArgs(
        key=item.key or None,
        operator=item.operator,
        value=item.value or None,
        effect=item.effect or None,
    )


def _node_affinity(where: Placement) -> core.NodeAffinityArgs | None:
    """A named node is required by its host name: nodeName would go past the scheduler and its
    accounting."""
    named = [NodeExpression(key=HOSTNAME, values=[where.node])] if where.node else []
    required = [*named, *(item for item in where.node_affinity if item.weight is None)]
    preferred = [item for item in where.node_affinity if item.weight is not None]
    if not required and not preferred:
        return None
    return core.NodeAffinityArgs(
        required_during_scheduling_ignored_during_execution=core.NodeSelectorArgs(
            node_selector_terms=[_term(required)]
        )
        if required
        else None,
        preferred_during_scheduling_ignored_during_execution=[
            core.PreferredSchedulingTermArgs(weight=item.weight or 0, preference=_term([item]))
            for item in preferred
        ]
        or None,
    )


def _term(expressions: Sequence[NodeExpression]) -> core.NodeSelectorTermArgs:
    return core.NodeSelectorTermArgs(
        match_expressions=[
            core.NodeSelectorRequirementArgs(
                key=item.key, operator=item.operator, values=list(item.values) or None
            )
            for item in expressions
        ]
    )


def _pod_affinity(where: Placement) -> core.PodAffinityArgs | None:
    if where.topology is None:
        return None
    term = core.PodAffinityTermArgs(
        topology_key=where.topology.key,
        label_selector=meta.LabelSelectorArgs(match_labels=dict(where.group)),
    )
    # The first of them is let in although no other is there yet: its own labels are selected.
    if where.topology.required:
        return core.PodAffinityArgs(required_during_scheduling_ignored_during_execution=[term])
    weighted = core.WeightedPodAffinityTermArgs(weight=_WEIGHT, pod_affinity_term=term)
    return core.PodAffinityArgs(preferred_during_scheduling_ignored_during_execution=[weighted])
