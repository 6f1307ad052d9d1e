"""Which lane a test runs in, and which tests share a worker: told from what each test asks for.

`fast` is every test that needs neither programs beside Python nor the demo model and takes no
minutes; nobody marks it. A module runs on one worker, and so do all tests of one shared stack,
which would otherwise be started once per worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

# Fixtures that stand for a real model, or for a stack or control plane of real processes.
_NOT_FAST = frozenset(
    {"demo_folder", "demo_text", "demo_weights", "local_stack", "control_plane", "redis_server"}
)
# Session fixtures that cost more than what a worker of its own would save.
_SHARED = ("local_stack", "control_plane")
# Longest first, so that no worker is left with a long group when the others are done.
_FIRST = ("tests/cluster/", "tests/e2e/", "tests/runner/stage/", "tests/runner/")


def sort_into_lanes(items: list[pytest.Item], *, order: bool) -> None:
    """Marks what was collected; `order` puts the longest groups first, for several workers."""
    for item in items:
        if is_fast(item):
            item.add_marker(pytest.mark.fast)
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(_group(item)))
    if order:
        items.sort(key=lambda item: _place(item.nodeid))


def each_once(names: Iterable[str], numbers: Sequence[int]) -> list[Any]:
    """Every name with every number, as parameters; `make test` runs each name with the last alone.

    The first name has every number there too.
    """
    found = []
    for place, name in enumerate(names):
        for number in numbers:
            left_out = place > 0 and number != numbers[-1]
            found.append(pytest.param(name, number, marks=[pytest.mark.long] if left_out else []))
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
    return not marks & {"slow", "long", "needs"} and not _NOT_FAST & _fixtures(item)


def _group(item: pytest.Item) -> str:
    for name in _SHARED:
        if name in _fixtures(item):
            return name
    return item.nodeid.partition("::")[0]


def _fixtures(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))


def _place(nodeid: str) -> int:
    return next((place for place, folder in enumerate(_FIRST) if nodeid.startswith(folder)), 99)
