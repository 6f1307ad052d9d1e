"""The fitted cost of a step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.master.engine.step_cost import FIRST_CHUNK, MIN_CHUNK, StageCost, StepCost
from runner.steps import StageTime

SIZES = st.sampled_from((1, 2, 3, 32, 64, 100, 128, 512)) | st.integers(1, 100_000)
# What a stage's time may be on the wire: 64 bits.
NANOSECONDS = st.sampled_from((0, 1, 1_000_000, 2**64 - 1)) | st.integers(0, 2**64 - 1)
ROUND_TRIPS = st.sampled_from((0.0, 1e-9, 0.05)) | st.floats(0, 1e10)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, float]]:
    """Tokens and seconds of a stage's steps; of many, the seconds are nearly in proportion."""
    sizes = draw(st.lists(SIZES, max_size=12))
    if draw(st.booleans()):
        per_token = draw(st.floats(1e-9, 10))
        return [(tokens, per_token * tokens * draw(st.floats(0.5, 2))) for tokens in sizes]
    return [(tokens, draw(NANOSECONDS) / 1e9) for tokens in sizes]


@st.composite
def steps(draw: st.DrawFn, ranks: int) -> tuple[int, tuple[StageTime, ...], float]:
    times = tuple(StageTime(rank, draw(NANOSECONDS), draw(NANOSECONDS)) for rank in range(ranks))
    return draw(SIZES | st.just(0)), times, draw(ROUND_TRIPS)


def proper(*figures: float) -> bool:
    return all(math.isfinite(figure) and figure >= 0 for figure in figures)


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


# All is per token: of the fixed part rounding alone remains.
IN_PROPORTION = (
    [(512, 4.669203457317902), (128, 0.9238761591229934)],  # -4e-16
    [(512, 0.765745142), (32, 0.040393239)],  # +1e-16 of the mean
    [(512, 0.512), (128, 0.128)],
)


@pytest.mark.parametrize("history", IN_PROPORTION)
def test_rounding_is_no_fixed_part(history: list[tuple[int, float]]) -> None:
    cost = StepCost(3)
    for stage in cost.stages:
        for tokens, seconds in history:
            stage.observe(tokens, seconds)
        fixed, per_token = stage.line()
        assert fixed == 0
        assert per_token > 0
    cost.largest_tokens = 512
    assert cost.chunk_tokens(1000, 512) == FIRST_CHUNK


@settings(max_examples=300)
@given(histories(), st.integers(0, 10**6))
def test_a_line_is_finite_and_not_negative(history: list[tuple[int, float]], tokens: int) -> None:
    stage = StageCost()
    for step in history:
        stage.observe(*step)
        assert proper(*stage.line(), stage.predict(tokens), stage.mean_s)


def test_a_stage_computes_no_longer_than_its_step_was_away() -> None:
    cost = StepCost(2)
    times = (StageTime(0, 2**64 - 1, 2**64 - 1), StageTime(1, 20_000_000, 0))
    cost.observe(8, times, 0.05)
    assert [stage.mean_s for stage in cost.stages] == pytest.approx([0.05, 0.02])
    assert cost.stages[0].wait_s == 0
    assert cost.longest_s(8) == pytest.approx(0.07)


@settings(max_examples=200)
@given(st.data(), st.integers(1, 16))
def test_every_figure_is_finite_and_not_negative(data: st.DataObject, ranks: int) -> None:
    cost = StepCost(ranks)
    budget, prompt = data.draw(st.integers(1, 4096)), data.draw(st.integers(1, 10**6))
    for step in data.draw(st.lists(steps(ranks), max_size=6)):
        cost.observe(*step)
        assert min(budget, MIN_CHUNK) <= cost.chunk_tokens(prompt, budget) <= budget
        longest_s = cost.longest_s(prompt)
        assert longest_s is None or proper(longest_s)
        assert proper(cost.overhead_s, cost.step_s(prompt), cost.slowest_s(budget))
        for micro_batches in (1, ranks + 1):
            assert proper(cost.round_s(micro_batches, prompt))
        for stage in cost.stages:
            assert proper(*stage.line(), stage.mean_s, stage.wait_s)
            assert proper(stage.compute_total_s, stage.wait_total_s)
