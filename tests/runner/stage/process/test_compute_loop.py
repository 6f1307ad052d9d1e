"""One stage's loop between two real data links: what it does while there is nothing to compute."""

from __future__ import annotations

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
    monkeypatch.setattr(compute_loop, "IDLE_AFTER_S", 0.3)
    stage = LoneStage(StageModel.load(Checkpoint(small_llama), (0, 6)))
    monkeypatch.setattr(
        compute_loop, "give_back_freed", lambda: stage.given_back.append(time.monotonic())
    )
    yield stage
    stage.end()
    assert not stage.failures
    assert not stage.ends


def test_a_step_that_outlives_its_epoch_is_stuck_only_after_a_while(
    stage: LoneStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute_loop, "STUCK_AFTER_S", 0.3)
    began, end = threading.Event(), threading.Event()

    def long_step(*_: object) -> None:
        began.set()
        end.wait(10)

    monkeypatch.setattr(stage.loop, "_answer", long_step)
    stage.send(Step(1, (), []))
    assert began.wait(5)
    time.sleep(0.6)
    assert not stage.loop.stuck()  # the epoch is in force: for the master to judge
    stage.links.halt()
    assert not stage.loop.stuck()
    wait_for(stage.loop.stuck, 5, "stuck")
    end.set()
    wait_for(lambda: not stage.loop.stuck(), 5, "turning again")


def test_freed_memory_is_given_back_once_when_it_has_been_idle(stage: LoneStage) -> None:
    time.sleep(0.5)
    assert not stage.given_back  # nothing was computed yet
    admission = Admission(1, 64, 3, 0, 0, GREEDY)
    tokens = stage.run(Step(0, (Segment(1, 0, 3, 3, True),), [5, 6, 7], (admission,)))
    for position in range(3, 23):
        time.sleep(0.03)
        busy = Step(position, (Segment(1, position, 1, position + 1, True),), tokens)
        tokens = stage.run(busy)
        assert len(tokens) == 1
    assert not stage.given_back
    last = time.monotonic()
    for number in range(30, 50):  # the master asks an idle group whether it lives
        time.sleep(0.03)
        assert stage.run(Step(number, (), [])) == []
    wait_for(lambda: stage.given_back, 5, "given back")
    assert stage.given_back[0] - last > 0.25
    time.sleep(0.5)
    assert len(stage.given_back) == 1
