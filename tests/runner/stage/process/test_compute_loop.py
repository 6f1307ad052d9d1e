"""One stage's loop between two real data links: what it does while there is nothing to compute."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.sampling_parameters import SamplingParameters
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel
from runner.stage.process import compute_loop
from runner.steps import Admission, Segment, Step
from tests.runner.stage.process.lone_stage import LoneStage
from tests.waiting import wait_for

GREEDY = SamplingParameters(temperature=0)


@pytest.fixture
def stage(small_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoneStage]:
    monkeypatch.setattr(compute_loop, "BEAT_INTERVAL_S", 0.02)
    stage = LoneStage(StageModel.load(Checkpoint(small_llama), (0, 6)))
    monkeypatch.setattr(compute_loop, "give_back_freed", lambda: stage.given_back.append(1))
    yield stage
    stage.end()
    assert not stage.failures
    assert not stage.ends


def test_a_step_that_outlives_its_epoch_is_stuck_only_after_a_while(
    stage: LoneStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute_loop, "STUCK_AFTER_S", 1.0)
    began, end = threading.Event(), threading.Event()

    def long_step(*_: object) -> None:
        began.set()
        end.wait(60)

    monkeypatch.setattr(stage.loop, "_answer", long_step)
    stage.send(Step(1, (), []))
    assert began.wait(60)
    time.sleep(1.5)
    assert not stage.loop.stuck()  # the epoch is in force: for the master to judge
    stage.links.halt()
    assert not stage.loop.stuck()
    wait_for(stage.loop.stuck, what="stuck")
    end.set()
    wait_for(lambda: not stage.loop.stuck(), what="turning again")


class Clock:
    """The loop's, which stands still."""

    perf_counter_ns = staticmethod(time.perf_counter_ns)

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now


def test_freed_memory_is_given_back_once_when_it_has_been_idle(
    stage: LoneStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(compute_loop, "time", clock)

    def pass_time(share: float) -> bool:
        """So much of what it may be idle; whether memory has been given back by then."""
        clock.now += share * compute_loop.IDLE_AFTER_S
        for _ in range(2):  # the loop has looked at the clock before it takes the second
            # The master asks an idle group whether it lives.
            assert stage.run(Step(next(numbers), (), [])) == []
        return bool(stage.given_back)

    numbers = itertools.count()
    assert not pass_time(2)  # nothing was computed yet
    admission = Admission(1, 64, 3, 0, 0, GREEDY)
    first = Step(next(numbers), (Segment(1, 0, 3, 3, True),), [5, 6, 7], (admission,))
    tokens = stage.run(first)
    for position in range(3, 8):
        assert not pass_time(0.9)
        busy = Step(next(numbers), (Segment(1, position, 1, position + 1, True),), tokens)
        tokens = stage.run(busy)
        assert len(tokens) == 1
    assert not pass_time(0)
    assert not pass_time(0.9)
    assert pass_time(0.2)
    assert pass_time(5)
    assert len(stage.given_back) == 1
