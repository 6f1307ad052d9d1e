"""The number of micro-batches follows from measured times, whatever the stages are like."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.master.engine.micro_batches import MicroBatches
from runner.master.engine.step_cost import StepCost
from runner.steps import StageTime
from tests.runner.master.engine.virtual_pipeline import VirtualPipeline

# (ranks, cores): stages with a core each, and four that share two.
MACHINES = [(1, 1), (2, 2), (4, 4), (4, 2), (2, 1)]
# Fixed and per-token seconds of a stage: memory-bound, balanced, compute-bound.
STAGES = [(0.02, 0.0001), (0.01, 0.001), (0.001, 0.002)]


def throughput(machine: tuple[int, int], stage: tuple[float, float], load: int, only=None) -> float:
    pipeline = VirtualPipeline(machine[0], *stage, machine[1], only=only)
    for _ in range(load):
        pipeline.submit(16, 1_000_000)
    pipeline.run(500 * sum(stage))
    return pipeline.run(100 * machine[0] * (stage[0] + load * stage[1]))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("load", [1, 4, 32])
def test_near_the_best_fixed_number(
    machine: tuple[int, int], stage: tuple[float, float], load: int
) -> None:
    best = max(throughput(machine, stage, load, only) for only in range(1, machine[0] + 2))
    assert throughput(machine, stage, load) >= 0.9 * best


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("stage", STAGES)
def test_throughput_does_not_fall_as_load_grows(
    machine: tuple[int, int], stage: tuple[float, float]
) -> None:
    speeds = [throughput(machine, stage, load) for load in (1, 2, 4, 8, 16, 32, 64)]
    for smaller, larger in itertools.pairwise(speeds):
        assert larger >= 0.95 * smaller


def test_chunks_of_one_prompt_are_pipelined() -> None:
    def first_token(ranks: int) -> float:
        pipeline = VirtualPipeline(ranks, 0.004 / ranks, 0.002 / ranks, ranks)
        pipeline.submit(512, 8)
        pipeline.run(100)
        pipeline.first_token_at, began = None, pipeline.now
        pipeline.submit(512, 1)
        pipeline.run(100)
        assert pipeline.first_token_at is not None
        return pipeline.first_token_at - began

    assert first_token(2) < 0.75 * first_token(1)
    assert first_token(4) < 0.5 * first_token(1)


# Requests, tokens, nothing prefilled, seconds since the step before.
RETURNS = st.tuples(
    st.integers(0, 300),
    st.integers(0, 300),
    st.booleans() | st.just(True),
    st.sampled_from((0.0, 1e-12, 0.02)) | st.floats(0, 1e10),
)


@given(
    st.integers(1, 16),
    st.lists(st.tuples(RETURNS, st.integers(1, 120)), max_size=8),
    st.integers(0, 2**64 - 1),
)
def test_whatever_comes_back_the_number_is_within_its_bounds(
    ranks: int,
    returns: list[tuple[tuple[int, int, bool, float], int]],
    nanoseconds: int,
) -> None:
    cost = StepCost(ranks)
    micro_batches, now = MicroBatches(cost), 0.0
    for (requests, tokens, pure, seconds), times in returns:
        for _ in range(times):
            now += seconds
            micro_batches.returned(requests, tokens, pure=pure, now=now)
            assert 1 <= micro_batches.count <= ranks + 1
        stages = [StageTime(rank, nanoseconds, 0) for rank in range(ranks)]
        cost.observe(max(1, tokens), stages, seconds)
    for count in range(1, ranks + 2):
        speed = micro_batches._speed(count, 8)
        assert speed is None or (math.isfinite(speed) and speed >= 0)
