"""Which lane a test runs in, told from what it asks for.

`fast` is every test that needs neither programs beside Python nor the demo model and takes no
minutes; nobody marks it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest

# Environment variable: how many times as many random cases.
FUZZ = "SPLITSTACK_FUZZ"
# Fixtures that stand for a real model, or for a stack or control plane of real processes.
_NOT_FAST = frozenset(
    {
        "demo_folder",
        "demo_text",
        "demo_weights",
        "local_stack",
        "whole_stack",
        "control_plane",
        "redis_server",
    }
)


def sort_into_lanes(items: Iterable[pytest.Item]) -> None:
    """Marks what was collected."""
    for item in items:
        if is_fast(item):
            item.add_marker(pytest.mark.fast)


def examples(count: int) -> int:
    """How many random cases a test tries: `count`, and ten times as many in `make test-all`."""
    return count * int(os.environ.get(FUZZ, "1"))


def each_once(names: Iterable[str], numbers: Sequence[int], fast: Collection[str]) -> list[Any]:
    """Every name with every number, as parameters; `make test` runs each name with the last alone.

    The first name has every number there too. `make fast` runs the names in `fast`.
    """
    found = []
    for place, name in enumerate(names):
        for number in numbers:
            marks = [] if name in fast else [pytest.mark.slow]
            if place > 0 and number != numbers[-1]:
                marks = [pytest.mark.long]
            found.append(pytest.param(name, number, marks=marks))
    return found


def each_value(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """Every pair, as parameters; `make test` runs as many as show each value of both once."""
    once = {
        (place % len(first), place % len(second)) for place in range(max(len(first), len(second)))
    }
    return [
        pytest.param(one, other, marks=[] if (row, column) in once else [pytest.mark.long])
        for row, one in enumerate(first)
        for column, other in enumerate(second)
    ]


def is_fast(item: pytest.Item) -> bool:
    """Whether `make fast` runs it."""
    marks = {mark.name for mark in item.iter_markers()}
    fixtures = set(getattr(item, "fixturenames", ()))
    return not marks & {"slow", "long", "needs"} and not fixtures & _NOT_FAST
