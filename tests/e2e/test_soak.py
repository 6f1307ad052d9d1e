"""Random users on every tier for minutes, with faults and without: nothing lost, nothing grown."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.running_stack import BLOCK, RunningStack
from benchmarks.soak import soak, stack_file
from benchmarks.soak_users import SECOND_BLOCK
from infra.stack.file import load_stack_file

MINUTES = float(os.environ.get("SPLITSTACK_SOAK_MINUTES", "5"))
GROWTH_MB = 20


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[RunningStack]:
    stack = RunningStack(tmp_path, stack_file(tmp_path))
    yield stack
    stack.stop()


def test_the_stack_of_a_soak_is_one(tmp_path: Path) -> None:
    deployment = load_stack_file(stack_file(tmp_path), ()).deployment
    assert [block.block_id for block in deployment.proxy_blocks] == [BLOCK, SECOND_BLOCK]


@pytest.mark.long
@pytest.mark.timeout(MINUTES * 60 + 600)
@pytest.mark.parametrize("every_s", [0.0, 20.0])
def test_nothing_is_lost_and_nothing_grows(stack: RunningStack, every_s: float) -> None:
    work = soak(
        stack, minutes=MINUTES, every_s=every_s, users=4, seed=int(every_s), warm_s=MINUTES * 30
    )
    report = asyncio.run(work)
    assert (report["failed"], report["wrong"]) == (0, 0), report
    assert sum(report["requests"].values()) > MINUTES
    grown = {name: row for name, row in report["growth"].items() if row["grown_mb"] > GROWTH_MB}
    assert grown == {}, report
    if every_s:
        assert sum(report["faults"].values()) > MINUTES
