"""The fitted cost of a step."""

from __future__ import annotations

import pytest

from runner.master.engine.step_cost import StageCost, StepCost
from runner.steps import StageTime


def test_line_is_recovered() -> None:
    stage = StageCost()
    for tokens in (1, 8, 32, 100, 3, 64):
        stage.observe(tokens, 0.01 + 0.0005 * tokens)
    assert stage.line() == pytest.approx((0.01, 0.0005))
    assert stage.predict(200) == pytest.approx(0.11)


def test_one_size_of_step_is_all_fixed() -> None:
    stage = StageCost()
    for _ in range(10):
        stage.observe(4, 0.02)
    assert stage.line() == pytest.approx((0.02, 0.0))


def test_never_negative() -> None:
    stage = StageCost()
    for tokens, seconds in ((1, 0.5), (100, 0.1), (50, 0.2)):
        stage.observe(tokens, seconds)
    fixed, per_token = stage.line()
    assert fixed >= 0
    assert per_token == 0


def test_a_long_answer_does_not_make_it_forget_what_a_prompt_costs() -> None:
    cost = StepCost(1)
    assert cost.longest_s(1) is None
    cost.observe(512, (StageTime(0, 6_000_000_000, 0),), 6.0)
    for _ in range(1000):
        cost.observe(1, (StageTime(0, 100_000_000, 0),), 0.1)
    assert cost.longest_s(1) == pytest.approx(0.1)
    assert cost.longest_s(512) == pytest.approx(6.0)
    assert cost.longest_s(100) == pytest.approx(6.0)
    assert cost.longest_s(2000) is None


def test_round_and_chunks() -> None:
    cost = StepCost(2)
    assert cost.chunk_tokens(1000, 512) == 128  # nothing measured yet
    for tokens in (1, 64, 256):
        nanoseconds = int((0.004 + 0.001 * tokens) * 1e9)
        cost.observe(
            tokens,
            (StageTime(0, nanoseconds, 0), StageTime(1, nanoseconds, 0)),
            2 * nanoseconds / 1e9,
        )
    assert cost.overhead_s == pytest.approx(0)
    # One micro-batch passes both stages in turn; of two, each stage always has one.
    assert cost.round_s(1, 8) == pytest.approx(2 * 0.012)
    assert cost.round_s(2, 8) == pytest.approx(2 * 0.008)
    # sqrt(0.001 * 1000 / 0.004) = 15.8 chunks
    assert cost.chunk_tokens(1000, 512) == pytest.approx(1000 / 15.8, abs=1)
    assert StepCost(1).chunk_tokens(1000, 512) == 512
