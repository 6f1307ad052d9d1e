from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runner.master.conftest import demo_folder, demo_text  # noqa: F401  fixtures
from tests.runner.master.scripted_engine import ScriptedEngine


class Trap:
    """Whoever unpickles `pickled`, or runs the Python `source`, leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker
        self.source = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
        self.pickled = pickle.dumps(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)

    @property
    def sprung(self) -> bool:
        return self.marker.exists()


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    """Fails the test that springs it."""
    made = Trap(tmp_path / "somebody-elses-code-ran")
    yield made
    assert not made.sprung


@pytest.fixture
def engine() -> ScriptedEngine:
    """Answers each request with one token."""
    return ScriptedEngine(lambda _request: [5])
