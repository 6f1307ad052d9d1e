"""Which tests share a pytest-xdist worker.

A module runs on one worker, in its order: what it starts is started once. So do all modules that
use the same stack or control plane of the session.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

_TESTS = Path(__file__).parent
# Session fixtures that cost more than a worker of its own would save.
_SHARED = ("local_stack", "whole_stack", "control_plane")
# Longest first, so that no worker is left with a long group when the others are done.
_FIRST = (
    "control_plane",
    "local_stack",
    "whole_stack",
    "tests/e2e/",
    "tests/cluster/",
    "tests/runner/",
)


class ByStack(LoadScopeScheduling):
    """Hands out one group after the other."""

    def _split_scope(self, nodeid: str) -> str:
        return group(_module(nodeid))


def longest_first(nodeid: str) -> int:
    """Sorts tests by their group."""
    name = group(_module(nodeid))
    places = (place for place, first in enumerate(_FIRST) if name.startswith(first))
    return next(places, len(_FIRST))


@functools.cache
def group(module: str) -> str:
    """Of a module such as tests/e2e/test_page.py."""
    text = (_TESTS.parent / module).read_text("utf-8")
    return next((name for name in _SHARED if re.search(rf"\b{name}\b", text)), module)


def _module(nodeid: str) -> str:
    return nodeid.partition("::")[0]
