"""The policies of an AIOS block: what each becomes in the stack file, or why it becomes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from contract.faults import Fault
from infra.stack.faults import StackConfigError

_SOURCE = "policyRulesSpec"
_POLICIES = (
    "clusterAllocator",
    "resourceAllocator",
    "loadBalancer",
    "stabilityChecker",
    "autoscaler",
)
_NODE = "resourceAllocator.parameters.allocation_data.node_id"
_CLUSTER_QUERY = "clusterAllocator.parameters.filter.clusterQuery"
_SESSIONS_ARE_KEPT = "loadBalancer.parameters.cache_sessions"
# The section of the block and the key in it that a number goes to.
_NUMBERS = {
    "stabilityChecker.settings.check_interval_sec": ("probe", "period_s"),
    "stabilityChecker.parameters.unhealthy_threshold": ("probe", "failure_threshold"),
    "autoscaler.settings.scale_up_cooldown": ("autoscaler", "scale_up_window_s"),
    "autoscaler.settings.scale_down_cooldown": ("autoscaler", "scale_down_window_s"),
}
# Why a value is not taken over.
_REASONS = {
    "clusterAllocator.settings.max_candidates": ("the stack names one cluster, nothing is chosen"),
    "resourceAllocator.parameters.allocation_data.gpus": (
        "a proxy block computes nothing; the ranks' devices are in per_rank_params"
    ),
    "resourceAllocator.settings.selection_mode": "the node is named, nothing is chosen",
    _SESSIONS_ARE_KEPT: (
        "the inference server always keeps a session with its instance while that is no busier "
        "than the others, and any other one finds its history in session_store"
    ),
    "loadBalancer.settings.session_cache_size": (
        "a session finds its instance by its id, without a table that could overflow; "
        "sessions.max_age_s bounds what is kept"
    ),
    "autoscaler.parameters.target_gpu_utilization": (
        "a proxy block uses no GPU; its instances follow CPU use, autoscaler.cpu_percent, and the "
        "number of ranks is fixed"
    ),
}


@dataclass
class MappedPolicies:
    """Keys for the block in the stack file, and a line for each thing that was left out."""

    block_keys: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def take(self, path: str, value: Any) -> None:
        """A value of a policy; raises StackConfigError for one that is no number and should be."""
        if path in {_NODE, *_NUMBERS, *_REASONS} and value is None:
            return
        if path == _NODE:
            self.block_keys["node_id"] = value
        elif path in _NUMBERS:
            section, key = _NUMBERS[path]
            self.block_keys.setdefault(section, {})[key] = _whole(path, value)
        else:
            met = path == _SESSIONS_ARE_KEPT and value is True
            reason = _REASONS.get(path, "the stack has nothing that it could set")
            outcome = "needs no key" if met else "not taken over"
            self.notes.append(f"{path} = {value!r}: {outcome}: {reason}")


def map_policies(rules: list[Any], cluster: str) -> MappedPolicies:
    """`cluster` is where the stack's proxy blocks run; raises StackConfigError."""
    mapped = MappedPolicies()
    with_code: list[str] = []
    for index, rule in enumerate(rules):
        values = rule.get("values") if isinstance(rule, dict) else None
        name = values.get("name") if isinstance(values, dict) else None
        if not isinstance(values, dict) or not isinstance(name, str):
            raise _fault(f"{_SOURCE}[{index}]", rule, 'must be {"values": {"name": ..., ...}}')
        given = _given(name, values)
        if name not in _POLICIES:
            known = ", ".join(_POLICIES)
            mapped.notes.append(f"{name}: not taken over: not one of {known}")
            continue
        if "policyRuleURI" in values:
            with_code.append(name)
        mapped.notes += _cluster_notes(given, cluster)
        for path, value in given.items():
            mapped.take(path, value)
    if with_code:
        mapped.notes.append(
            f"policyRuleURI of {', '.join(with_code)}: not taken over: no code of AIOS's runs in a "
            "stack; Kubernetes and the inference server do what the policies' values say"
        )
    return mapped


def _given(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """A policy's parameters and settings by their paths."""
    found: dict[str, Any] = {}
    for group in ("parameters", "settings"):
        given = values.get(group) or {}
        if not isinstance(given, dict):
            raise _fault(f"{name}.{group}", given, "must be an object")
        found |= _flat(given, f"{name}.{group}")
    return found


def _flat(place: dict[str, Any], path: str) -> dict[str, Any]:
    """{"a": {"b": 1}} as {"path.a.b": 1}."""
    found: dict[str, Any] = {}
    for key, value in place.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{path}.{key}")
        else:
            found[f"{path}.{key}"] = value
    return found


def _cluster_notes(given: dict[str, Any], cluster: str) -> Iterator[str]:
    """Takes the query for a cluster out of what is given."""
    variable, operator, value = (
        given.pop(f"{_CLUSTER_QUERY}.{key}", None) for key in ("variable", "operator", "value")
    )
    if variable is not None and (variable, operator) != ("id", "=="):
        yield (
            f"{_CLUSTER_QUERY}: not taken over: a stack names its clusters, so that only "
            "variable id with operator == says where"
        )
    elif value is not None and value != cluster:
        yield (
            f"{_CLUSTER_QUERY}.value = {value!r}: not taken over: proxy blocks run beside "
            f"rank 0, on rank_0_cluster_id ({cluster!r}); change that to move both"
        )


def _whole(path: str, number: Any) -> float:
    """10.0 as 10; what is no whole number stays, for validation to refuse."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise _fault(path, number, "must be a number")
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _fault(path: str, value: object, rule: str) -> StackConfigError:
    return StackConfigError("the block", [Fault(path, value, rule)])
