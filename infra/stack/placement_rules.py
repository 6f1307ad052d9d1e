"""Rules of where pods may run. Functions yield Faults; none raises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from contract.faults import Fault
from infra.stack.config import DeploymentConfig
from infra.stack.placement_config import (
    HOSTNAME,
    NodeChoice,
    NodeExpression,
    Toleration,
)

_WITHOUT_VALUES = ("Exists", "DoesNotExist")
_NUMBERS = ("Gt", "Lt")


def placement_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    """Of the ranks' nodes, then of every tier's tolerations."""
    yield from _choice_faults("placement", deployment.placement)
    for index, params in enumerate(deployment.per_rank_params):
        path = f"per_rank_params[{index}].placement"
        yield from _choice_faults(path, params.placement)
        yield from _contradictions(deployment, path, params.placement)
        if params.node_id and HOSTNAME in deployment.node_choice(params.rank).node_selector:
            rule = f"and {HOSTNAME} in node_selector both name its node; keep one of them"
            yield Fault(f"per_rank_params[{index}].node_id", params.node_id, rule)
    yield from _toleration_faults("tolerations", deployment.tolerations)
    for key, pods in deployment.tiers.items():
        yield from _toleration_faults(f"{key}.tolerations", pods.tolerations)


def _choice_faults(path: str, choice: NodeChoice) -> Iterator[Fault]:
    for index, expression in enumerate(choice.node_affinity):
        where = f"{path}.node_affinity[{index}].values"
        if rule := _misfit(expression):
            yield Fault(where, list(expression.values), rule)


def _misfit(expression: NodeExpression) -> str:
    """What is wrong with its values; "" where nothing is."""
    operator, values = expression.operator, expression.values
    if operator in _WITHOUT_VALUES:
        return f"must be empty with operator {operator}" if values else ""
    if operator in _NUMBERS:
        fits = len(values) == 1 and values[0].isdecimal()
        return "" if fits else f"must be one whole number with operator {operator}"
    return "" if values else f"must list a value with operator {operator}"


def _contradictions(deployment: DeploymentConfig, path: str, own: NodeChoice) -> Iterator[Fault]:
    common = deployment.placement.node_selector
    for key, value in own.node_selector.items():
        if common.get(key, value) != value:
            rule = f"must be {common[key]}, as in placement.node_selector: a node has one of them"
            yield Fault(f"{path}.node_selector.{key}", value, rule)


def _toleration_faults(path: str, tolerations: Sequence[Toleration]) -> Iterator[Fault]:
    for index, toleration in enumerate(tolerations):
        if toleration.operator == "Exists" and toleration.value:
            rule = "must be empty with operator Exists"
            yield Fault(f"{path}[{index}].value", toleration.value, rule)
        if toleration.operator == "Equal" and not toleration.key:
            yield Fault(f"{path}[{index}].key", "", "is required with operator Equal")
