"""Prometheus metrics of the engine and of every rank, read from what it counts itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runner.master.engine.report import EngineStatistics, RankStatistics

_RANK_GAUGES: dict[str, tuple[str, Callable[[RankStatistics], float]]] = {
    "splitstack_stage_up": ("1 while the rank is held by a loaded stage", lambda r: bool(r.stage)),
    "splitstack_stage_step_seconds": ("Mean compute of a late step", lambda r: r.cost.mean_s),
    "splitstack_stage_wait_mean_seconds": ("Mean wait of a late step", lambda r: r.cost.wait_s),
    "splitstack_stage_weight_bytes": (
        "Bytes of weights held",
        lambda r: r.stage.weight_bytes if r.stage else 0,
    ),
    "splitstack_stage_kv_bytes": (
        "Bytes of the KV cache, used or not",
        lambda r: r.stage.kv_tokens * r.stage.kv_bytes_per_token if r.stage else 0,
    ),
}
_RANK_COUNTERS: dict[str, tuple[str, Callable[[RankStatistics], float]]] = {
    "splitstack_stage_steps": ("Steps computed", lambda r: r.cost.steps_total),
    "splitstack_stage_compute_seconds": ("Time computing", lambda r: r.cost.compute_total_s),
    "splitstack_stage_wait_seconds": (
        "Time without work while a step was under way",
        lambda r: r.cost.wait_total_s,
    ),
    "splitstack_stage_restarts": ("Processes that took the rank over", lambda r: r.restarts),
}


class EngineCollector(Collector):
    """Reads the engine's statistics at each scrape."""

    def __init__(self, model_name: str, read: Callable[[], EngineStatistics]) -> None:
        self._model_name, self._read = model_name, read

    def collect(self) -> Iterable[Metric]:
        now = self._read()
        usage = now.kv_tokens_reserved / now.kv_tokens if now.kv_tokens else 0.0
        gauges = {
            "vllm:num_requests_running": ("Requests in the running batch", now.running),
            "vllm:num_requests_waiting": ("Requests that wait for a place", now.waiting),
            "vllm:kv_cache_usage_perc": ("Share of the KV cache reserved, 0 to 1", usage),
            "splitstack_group_ready": ("1 while requests are served", now.ready),
            "splitstack_epoch": ("Life of the rank group in force", now.epoch),
            "splitstack_micro_batches": ("Micro-batches kept in flight", now.micro_batches),
            "splitstack_steps_in_flight": ("Steps in the pipeline", now.steps_in_flight),
        }
        counters = {
            "splitstack_steps": ("Steps sent into the pipeline", now.steps),
            "splitstack_group_formations": ("Epochs formed", now.formations),
            "splitstack_group_losses": ("Epochs lost", now.losses),
            "splitstack_replays": ("Requests replayed into a new epoch", now.replays),
        }
        for name, (text, value) in gauges.items():
            yield self._family(GaugeMetricFamily, name, text, [((), float(value))])
        for name, (text, value) in counters.items():
            yield self._family(CounterMetricFamily, name, text, [((), float(value))])
        for name, (text, of) in _RANK_GAUGES.items():
            yield self._family(GaugeMetricFamily, name, text, _by_rank(now, of))
        for name, (text, of) in _RANK_COUNTERS.items():
            yield self._family(CounterMetricFamily, name, text, _by_rank(now, of))

    def _family(
        self,
        kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
        name: str,
        text: str,
        samples: Iterable[tuple[tuple[str, ...], float]],
    ) -> Metric:
        """Each sample has no label values of its own, or its rank."""
        found = list(samples)
        ranked = bool(found and found[0][0])
        family = kind(name, text, labels=("model_name", "rank") if ranked else ("model_name",))
        for labels, value in found:
            family.add_metric([self._model_name, *labels], value)
        return family


def _by_rank(
    now: EngineStatistics, of: Callable[[RankStatistics], float]
) -> list[tuple[tuple[str, ...], float]]:
    return [((str(rank.rank),), float(of(rank))) for rank in now.ranks]
