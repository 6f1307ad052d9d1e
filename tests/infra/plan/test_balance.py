"""Measured times of ranks as advice: said where another cut helps, and only there."""

from __future__ import annotations

import pytest

from infra.plan.balance import balance_advice
from infra.plan.layers import RankResources, plan_layers
from tests.infra.plan.test_layers import shape_of

GB = 10**9


def topology(times, layers, steps=1000, **more):
    bounds = [sum(layers[:rank]) for rank in range(len(layers) + 1)]
    ranks = [
        {
            "rank": rank,
            "loaded": True,
            "layers": [bounds[rank], bounds[rank + 1]],
            "weight_bytes": layers[rank] * GB,
            "compute_ms": time,
        }
        | more
        for rank, time in enumerate(times)
    ]
    return {"steps": steps, "ranks": ranks}


def test_a_slower_gpu_is_named_with_every_rank_s_speed():
    said = balance_advice(topology([10.0, 20.0, 10.0], [8, 8, 8]))
    assert said.startswith(
        "rank 1 computes 20.0 ms of a step and rank 0 10.0 ms: steps would be shorter with fewer "
        "layers on rank 1. Measured speeds for per_rank_params[].speed by rank: 0: 1, 1: 0.5, 2: 1"
    )


@pytest.mark.parametrize(
    ("times", "layers", "more"),
    [
        ([10.0, 10.9], [8, 8], {}),  # noise
        ([10.0, 20.0], [1, 1], {}),  # nothing to give
        ([10.0, 15.0], [2, 2], {}),  # a layer moved would make the other the slowest
        ([10.0, 20.0], [8, 8], {"steps": 20}),
        ([10.0], [8], {}),
        ([10.0, 0.0], [8, 8], {}),
        ([10.0, 20.0], [8, 8], {"loaded": False}),
    ],
)
def test_nothing_is_said(times, layers, more):
    assert balance_advice(topology(times, layers, **more)) == ""


def test_what_is_said_evens_the_times_out():
    """The speeds of the advice, given to the plan, cut where times are equal."""
    shape = shape_of([3] * 24, embedding=0, head=0)
    resources = [RankResources(speed=speed) for speed in (1.0, 0.5, 1.0)]
    found = [plan.layers for plan in plan_layers(shape, resources, "float32", 10)]
    sizes = [end - start for start, end in found]
    times = [size / item.speed for size, item in zip(sizes, resources, strict=True)]
    assert max(times) <= 1.2 * min(times)
    assert balance_advice(topology(times, sizes)) == ""
