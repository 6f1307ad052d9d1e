from __future__ import annotations

import time

import pytest
from prometheus_client import CollectorRegistry

from runner.master.engine.report import EngineStatistics, RankStatistics
from runner.master.engine.step_cost import StepCost
from runner.master.metrics import EngineCollector, TokenSpeed
from runner.steps import StageTime


def test_speed_is_that_of_the_last_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    speed = TokenSpeed()
    for second in range(20):
        for _ in range(30):
            speed.add(100.0 + second)
    now = 120.5
    assert speed.per_second() == 30
    now = 125.5
    assert speed.per_second() == 15
    now = 140.0
    assert speed.per_second() == 0


def test_every_rank_has_its_times() -> None:
    cost = StepCost(2)
    times = [StageTime(0, 20_000_000, 5_000_000), StageTime(1, 10_000_000, 9_000_000_000)]
    cost.observe(4, times, round_trip_s=0.05)
    ranks = [RankStatistics(rank, None, rank, cost.stages[rank]) for rank in (0, 1)]
    statistics = EngineStatistics(kv_tokens=100, kv_tokens_reserved=25, ready=True, ranks=ranks)
    registry = CollectorRegistry()
    registry.register(EngineCollector(lambda: "m", lambda: statistics))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"model_name": "m", **labels})

    assert value("splitstack_stage_compute_seconds_total", rank="0") == 0.02
    assert value("splitstack_stage_wait_seconds_total", rank="0") == 0.005
    # Nine idle seconds before the step was sent are no bubble: the step itself took 50 ms.
    assert value("splitstack_stage_wait_seconds_total", rank="1") == 0.04
    assert value("splitstack_stage_restarts_total", rank="1") == 1
    assert value("splitstack_stage_up", rank="1") == 0
    assert value("vllm:kv_cache_usage_perc") == 0.25
    assert value("splitstack_group_ready") == 1
