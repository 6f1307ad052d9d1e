"""Where pods may run, in Kubernetes' own words."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from infra.stack import types

HOSTNAME = "kubernetes.io/hostname"  # a node's label, by which `node_id` names it
NodeLabels = dict[types.LabelKey, types.LabelValue]


class Toleration(types.Section):
    """One toleration of pods, as in Kubernetes."""

    key: types.Key = ""
    """Taint key; empty with operator Exists: every taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """How key and value are compared."""
    value: types.Text = ""
    """Taint value."""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    """Taint effect; empty: every effect."""


class NodeExpression(types.Section):
    """One condition on a node's labels."""

    key: types.LabelKey
    """Label of the node."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = "In"
    """How the label's value and `values` are compared."""
    values: list[types.LabelValue] = Field(default_factory=list)
    """None with Exists and DoesNotExist, one number with Gt and Lt."""
    weight: Annotated[types.Integer, Field(ge=1, le=100)] | None = None
    """How much such a node is preferred, 1 to 100; null: no other node is taken."""


class NodeChoice(types.Section):
    """Which nodes a rank may run on; all of it has to hold."""

    node_selector: NodeLabels = Field(default_factory=dict)
    """Labels that its node has."""
    node_affinity: list[NodeExpression] = Field(default_factory=list)
    """Conditions on the labels of its node."""

    @property
    def selects(self) -> bool:
        """Whether it leaves any node out."""
        return bool(self.node_selector) or any(item.weight is None for item in self.node_affinity)


class Topology(types.Section):
    """One zone or rack for all ranks that are on a cluster."""

    key: types.LabelKey
    """Label whose value their nodes share, as in topology.kubernetes.io/zone."""
    required: bool = False
    """Whether a rank rather waits than runs elsewhere."""


class Placement(NodeChoice):
    """Where the ranks run, beside node_id; per_rank_params[].placement comes on top."""

    topology: Topology | None = None
    """One zone or rack for all ranks; null: wherever there is room."""
