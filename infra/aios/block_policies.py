"""The policies of an AIOS block: what each becomes in the stack file, or why it becomes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from contract.faults import Fault
from infra.stack.faults import StackConfigError

_SOURCE = "policyRulesSpec"


@dataclass
class MappedPolicies:
    """Keys for the block in the stack file, and a line for each thing that was left out."""

    block_keys: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class _Values:
    """A policy's parameters and settings; what nobody takes is named at the end."""

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        self.name = name
        self._left: dict[str, Any] = {}
        for group in ("parameters", "settings"):
            given = values.get(group) or {}
            if not isinstance(given, dict):
                raise _fault(f"{name}.{group}", given, "must be an object")
            self._left |= _flat(given, f"{name}.{group}")

    def take(self, path: str) -> Any:
        """The value at `path` under the policy, None where there is none."""
        return self._left.pop(f"{self.name}.{path}", None)

    def number(self, path: str) -> float | None:
        value = self.take(path)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise _fault(f"{self.name}.{path}", value, "must be a number")
        return value

    def note(self, path: str, reason: str) -> Iterator[str]:
        """A line about `path` if it is given."""
        if (value := self.take(path)) is not None:
            yield f"{self.name}.{path} = {value!r}: not taken over: {reason}"

    def rest(self) -> Iterator[str]:
        for path, value in self._left.items():
            yield f"{path} = {value!r}: not taken over: the stack has nothing that it could set"


def map_policies(rules: list[Any], cluster: str) -> MappedPolicies:
    """`cluster` is where the stack's proxy blocks run; raises StackConfigError."""
    mapped = MappedPolicies()
    with_code: list[str] = []
    for index, rule in enumerate(rules):
        values = rule.get("values") if isinstance(rule, dict) else None
        name = values.get("name") if isinstance(values, dict) else None
        if not isinstance(values, dict) or not isinstance(name, str):
            raise _fault(f"{_SOURCE}[{index}]", rule, 'must be {"values": {"name": ..., ...}}')
        policy = _Values(name, values)
        if name not in _POLICIES:
            known = ", ".join(_POLICIES)
            mapped.notes.append(f"{name}: not taken over: not one of {known}")
            continue
        if "policyRuleURI" in values:
            with_code.append(name)
        if name == "clusterAllocator":
            mapped.notes += _cluster(policy, cluster)
        else:
            mapped.notes += _POLICIES[name](policy, mapped.block_keys)
        mapped.notes += policy.rest()
    if with_code:
        mapped.notes.append(
            f"policyRuleURI of {', '.join(with_code)}: not taken over: no code of AIOS's runs in a "
            "stack; Kubernetes and the inference server do what the policies' values say"
        )
    return mapped


def _cluster(policy: _Values, cluster: str) -> Iterator[str]:
    query = "parameters.filter.clusterQuery"
    variable, operator = policy.take(f"{query}.variable"), policy.take(f"{query}.operator")
    value = policy.take(f"{query}.value")
    if (variable, operator) != ("id", "==") and variable is not None:
        yield (
            f"{policy.name}.{query}: not taken over: a stack names its clusters, so that only "
            "variable id with operator == says where"
        )
    elif value is not None and value != cluster:
        yield (
            f"{policy.name}.{query}.value = {value!r}: not taken over: proxy blocks run beside "
            f"rank 0, on rank_0_cluster_id ({cluster!r}); change that to move both"
        )
    yield from policy.note(
        "settings.max_candidates", "the stack names one cluster, nothing is chosen"
    )


def _resources(policy: _Values, block: dict[str, Any]) -> Iterator[str]:
    node = policy.take("parameters.allocation_data.node_id")
    if node is not None:
        block["node_id"] = node
    yield from policy.note(
        "parameters.allocation_data.gpus",
        "a proxy block computes nothing; the ranks' devices are in per_rank_params",
    )
    yield from policy.note("settings.selection_mode", "the node is named, nothing is chosen")


def _load_balancer(policy: _Values, _block: dict[str, Any]) -> Iterator[str]:
    keeps = policy.take("parameters.cache_sessions")
    if keeps is not None:
        met = "needs no key" if keeps is True else "not taken over"
        yield (
            f"{policy.name}.parameters.cache_sessions = {keeps!r}: {met}: the inference server "
            "always keeps a session with its instance while that is no busier than the others, "
            "and any other one finds its history in session_store"
        )
    yield from policy.note(
        "settings.session_cache_size",
        "a session finds its instance by its id, without a table that could overflow; "
        "sessions.max_age_s bounds what is kept",
    )


def _stability(policy: _Values, block: dict[str, Any]) -> Iterator[str]:
    probe: dict[str, Any] = {}
    if (period := policy.number("settings.check_interval_sec")) is not None:
        probe["period_s"] = _whole(period)
    if (threshold := policy.number("parameters.unhealthy_threshold")) is not None:
        probe["failure_threshold"] = _whole(threshold)
    if probe:
        block["probe"] = probe
    yield from ()


def _autoscaler(policy: _Values, block: dict[str, Any]) -> Iterator[str]:
    autoscaler: dict[str, Any] = {}
    for theirs, ours in (
        ("settings.scale_up_cooldown", "scale_up_window_s"),
        ("settings.scale_down_cooldown", "scale_down_window_s"),
    ):
        if (seconds := policy.number(theirs)) is not None:
            autoscaler[ours] = _whole(seconds)
    if autoscaler:
        block["autoscaler"] = autoscaler
    yield from policy.note(
        "parameters.target_gpu_utilization",
        "a proxy block uses no GPU; its instances follow CPU use, autoscaler.cpu_percent, and the "
        "number of ranks is fixed",
    )


_POLICIES: dict[str, Callable[[_Values, dict[str, Any]], Iterator[str]]] = {
    "clusterAllocator": lambda _policy, _block: iter(()),
    "resourceAllocator": _resources,
    "loadBalancer": _load_balancer,
    "stabilityChecker": _stability,
    "autoscaler": _autoscaler,
}


def _whole(number: float) -> float:
    """10.0 as 10; what is no whole number stays, for validation to refuse."""
    return int(number) if number == int(number) else number


def _flat(place: dict[str, Any], path: str) -> dict[str, Any]:
    """{"a": {"b": 1}} as {"path.a.b": 1}."""
    found: dict[str, Any] = {}
    for key, value in place.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{path}.{key}")
        else:
            found[f"{path}.{key}"] = value
    return found


def _fault(path: str, value: object, rule: str) -> StackConfigError:
    return StackConfigError("the block", [Fault(path, value, rule)])
