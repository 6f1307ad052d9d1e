"""The `selection_query` of a request, in AIOS's form or in the short one, as one condition tree.

AIOS: body.values.rankingPolicyRule.values.parameters.filterRule.filter.blockQuery, which is either
{variable, operator, value} or {logicalOperator, conditions: [...]}. The short form is
{"component"?, "tags"?: [...], "labels"?: {...}}: all of it must hold. The ranking is always ours
(least loaded), so that policyRuleURI, settings and matchType change nothing.
"""

from __future__ import annotations

import fnmatch
import glob
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from contract.faults import shown_value
from contract.specs import BlockSpec
from web.body import Fields, parse
from web.errors import invalid_field

PARAM = "selection_query"
AIOS_PATH = ("body", "values", "rankingPolicyRule", "values", "parameters", "filterRule", "filter")
MAX_CONDITIONS = 64
MAX_DEPTH = 8
Text = Annotated[str, Field(min_length=1, max_length=256)]
_OPERAND_RULES: dict[str, tuple[type, str]] = {
    "IN": (list, "must be a list with IN"),
    "NOT IN": (list, "must be a list with NOT IN"),
    "LIKE": (str, "must be a string with LIKE"),
}
Operator = Literal["==", "!=", "<", "<=", ">", ">=", "IN", "NOT IN", "LIKE"]
_ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
# AIOS writes the same places in several ways.
_SAME = {
    "blockId": "id",
    "blockComponentURI": "component",
    "component.metadata": "component.componentMetadata",
    "tags": "component.tags",
    "labels": "component.labels",
}
_COMPONENT = "component"


class Condition(Fields):
    """One comparison; `variable` as in component.componentMetadata.framework, tags, id."""

    variable: Text
    operator: Operator
    value: Any

    def failure(self, variables: Variables) -> str:
        """ "" where it holds, else the condition and what the block has there."""
        found = variables.find(self.variable)
        if holds(self.operator, found, self.value):
            return ""
        return f"{self.variable} {self.operator} {shown_value(self.value)} is false: {found.shown}"


@dataclass(frozen=True)
class AllOf:
    conditions: tuple[Tree, ...]

    def failure(self, variables: Variables) -> str:
        return next(filter(None, self._failures(variables)), "")

    def _failures(self, variables: Variables) -> Iterator[str]:
        return (condition.failure(variables) for condition in self.conditions)


@dataclass(frozen=True)
class AnyOf:
    conditions: tuple[Tree, ...]

    def failure(self, variables: Variables) -> str:
        failures = [condition.failure(variables) for condition in self.conditions]
        return " and ".join(failures) if all(failures) else ""


Tree = Condition | AllOf | AnyOf


def _few(labels: Any) -> Any:
    """Before each of them is looked at: a million faults cost seconds."""
    if isinstance(labels, dict) and len(labels) > MAX_CONDITIONS:
        raise ValueError(f"must be at most {MAX_CONDITIONS}")
    return labels


class ShortForm(Fields):
    component: Text | None = None
    tags: Annotated[list[Text], Field(max_length=MAX_CONDITIONS)] = []
    labels: Annotated[dict[Text, str], BeforeValidator(_few)] = {}


def parse_selection_query(value: dict[str, Any]) -> Tree | None:
    """The conditions, None where the query is empty. Raises ApiError 400 naming path and rule."""
    if not value:
        return None
    if "body" not in value and "header" not in value:
        return _short(value)
    given = _filter(value)
    for name in given:
        if name != "blockQuery":
            what = "queries by metrics" if name == "blockMetricsQuery" else "this query"
            path = ".".join((PARAM, *AIOS_PATH, name[:80]))
            rule = f"{what} cannot be answered here; the least loaded block is taken"
            raise invalid_field(path, f"is not supported: {rule}", given[name], "not_supported")
    query = given.get("blockQuery") or {}
    return _tree(query, ".".join((PARAM, *AIOS_PATH, "blockQuery")), 0) if query else AllOf(())


def _short(value: dict[str, Any]) -> Tree:
    form = parse(ShortForm, value, PARAM)
    conditions = [Condition(variable="tags", operator="==", value=tag) for tag in form.tags]
    for name, label in form.labels.items():
        conditions.append(Condition(variable=f"labels.{name}", operator="==", value=label))
    if form.component is not None:
        conditions.append(Condition(variable="component", operator="==", value=form.component))
    return AllOf(tuple(conditions))


def _filter(value: dict[str, Any]) -> dict[str, Any]:
    """What lies at AIOS_PATH."""
    place: Any = value
    path = PARAM
    for name in AIOS_PATH:
        if name not in place:
            raise invalid_field(f"{path}.{name}", "is required", None)
        place, path = place[name], f"{path}.{name}"
        if not isinstance(place, dict):
            raise invalid_field(path, "must be an object", place)
    assert isinstance(place, dict)
    return place


def _tree(value: Any, path: str, depth: int) -> Tree:
    if not isinstance(value, dict):
        raise invalid_field(path, "must be an object", value)
    if depth > MAX_DEPTH:
        raise invalid_field(path, f"must be nested at most {MAX_DEPTH} deep", value)
    if "conditions" not in value and "logicalOperator" not in value:
        return _condition(value, path)
    conditions, operator = value.get("conditions"), value.get("logicalOperator", "AND")
    if not isinstance(conditions, list) or not 0 < len(conditions) <= MAX_CONDITIONS:
        rule = f"must be a list of 1 to {MAX_CONDITIONS} conditions"
        raise invalid_field(f"{path}.conditions", rule, conditions)
    if operator not in ("AND", "OR"):
        raise invalid_field(f"{path}.logicalOperator", "must be AND or OR", operator)
    for name in value.keys() - {"conditions", "logicalOperator"}:
        raise invalid_field(f"{path}.{name[:80]}", "is not a field", value[name])
    items = tuple(
        _tree(item, f"{path}.conditions[{place}]", depth + 1)
        for place, item in enumerate(conditions)
    )
    return AllOf(items) if operator == "AND" else AnyOf(items)


def _condition(value: dict[str, Any], path: str) -> Condition:
    condition = parse(Condition, value, path)
    rule = _OPERAND_RULES.get(condition.operator)
    if rule is not None and not isinstance(condition.value, rule[0]):
        raise invalid_field(f"{path}.value", rule[1], condition.value)
    return condition


@dataclass(frozen=True)
class Found:
    """The value of a variable; `there` False where the block has none."""

    value: Any = None
    there: bool = False

    @property
    def shown(self) -> str:
        return f"the block has {shown_value(self.value)}" if self.there else "the block has none"


class Variables:
    """The block's id, component, labels and tags, and everything of its component.json."""

    def __init__(self, spec: BlockSpec, component: dict[str, Any]) -> None:
        self._uri = spec.component
        self._document = {
            "id": spec.block_id,
            _COMPONENT: {"tags": [], **component, "labels": spec.labels},
        }

    def find(self, variable: str) -> Found:
        """The value at a dotted path; labels may have dots of their own."""
        for name, same in _SAME.items():
            if variable == name or variable.startswith(f"{name}."):
                variable = same + variable[len(name) :]
                break
        if variable == _COMPONENT:
            return Found(self._uri, there=True)
        return _walk(self._document, variable)


def _walk(place: Any, path: str) -> Found:
    if isinstance(place, dict):
        if path in place:
            return Found(place[path], there=True)
        head, _, rest = path.partition(".")
        if rest and head in place:
            return _walk(place[head], rest)
    return Found()


def holds(comparison: str, found: Found, value: Any) -> bool:
    """As AIOS's database compares: a list is equal to each of its items. What a block does not
    have is unequal to everything and neither more nor less than anything."""
    items = found.value if isinstance(found.value, list) else [found.value]
    items = items if found.there else []
    match comparison:
        case "==":
            whole = found.there and _equal(found.value, value)
            return whole or any(_equal(item, value) for item in items)
        case "!=":
            return not holds("==", found, value)
        case "IN":
            return any(_equal(item, one) for item in items for one in value)
        case "NOT IN":
            return not holds("IN", found, value)
        case "LIKE":
            return any(isinstance(item, str) and _like(item, value) for item in items)
    return any(_comparable(item, value) and _ORDERED[comparison](item, value) for item in items)


def _equal(left: Any, right: Any) -> bool:
    """Python takes True for 1; JSON does not."""
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def _comparable(left: Any, right: Any) -> bool:
    numbers = [isinstance(one, int | float) and not isinstance(one, bool) for one in (left, right)]
    return all(numbers) or (isinstance(left, str) and isinstance(right, str))


def _like(text: str, pattern: str) -> bool:
    """SQL's LIKE, whatever the case; a pattern without % may stand anywhere in the text."""
    text, pattern = text.lower(), pattern.lower()
    if "%" not in pattern:
        return pattern in text
    return fnmatch.fnmatchcase(text, "*".join(map(glob.escape, pattern.split("%"))))
