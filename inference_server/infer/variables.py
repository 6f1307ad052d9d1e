"""What a selection query can ask of a block, and how values compare."""

from __future__ import annotations

import fnmatch
import glob
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from contract.faults import shown_value
from contract.specs import BlockSpec

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
