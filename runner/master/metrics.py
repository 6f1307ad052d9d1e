"""Prometheus metrics: of requests, of the engine, of every rank.

vLLM's names, the llm_* names of AIOS's LLMMetrics, and splitstack_* where neither has one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runner.master.engine.report import EngineStatistics, RankStatistics

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
_LABELS = ("model_name",)
_SPEED_WINDOW_S = 10
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


class Metrics:
    """Counters and histograms of one master; the engine's own come from `statistics`."""

    def __init__(self, model_name: str, statistics: Callable[[], EngineStatistics]) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, _LABELS, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, _LABELS, buckets=buckets, registry=self.registry)

        self._prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens processed")
        self._generation_tokens = counter("vllm:generation_tokens", "Tokens generated")
        self._per_token = histogram(
            "vllm:inter_token_latency_seconds", "Between two tokens of a request", _TOKEN_SECONDS
        )
        self._request_prompt_tokens = histogram(
            "vllm:request_prompt_tokens", "Prompt tokens of a request", _TOKENS
        )
        self._request_generation_tokens = histogram(
            "vllm:request_generation_tokens", "Tokens generated for a request", _TOKENS
        )
        self._prompts = counter("llm_prompts", "Prompts received")
        self._llm_prompt_tokens = counter("llm_prompt_tokens", "Prompt tokens processed")
        self._llm_tokens = counter("llm_tokens_generated", "Tokens generated")
        self._errors = counter("llm_inference_errors", "Requests that ended with an error")
        # Each pair measures the same under vLLM's name and under AIOS's.
        self._end_to_end = (
            histogram("vllm:e2e_request_latency_seconds", "Whole request", _SECONDS),
            histogram("llm_inference_duration_seconds", "Whole request", _SECONDS),
        )
        self._first_token = (
            histogram("vllm:time_to_first_token_seconds", "Until the first token", _SECONDS),
            histogram("llm_time_to_first_token_seconds", "Until the first token", _SECONDS),
        )
        self._per_output_token = (
            histogram(
                "vllm:request_time_per_output_token_seconds", "Mean of a request", _TOKEN_SECONDS
            ),
            histogram("llm_time_per_output_token_seconds", "Mean of a request", _TOKEN_SECONDS),
        )
        self._speed = Gauge(
            "llm_tokens_per_second",
            f"Tokens generated per second, over the last {_SPEED_WINDOW_S} seconds",
            _LABELS,
            registry=self.registry,
        )
        self._success = Counter(
            "vllm:request_success",
            "Requests that ended, by how",
            (*_LABELS, "finished_reason"),
            registry=self.registry,
        )
        self.speed = TokenSpeed()
        self.serve(model_name)
        self.registry.register(EngineCollector(lambda: self._model_name, statistics))

    def serve(self, model_name: str) -> None:
        """What is counted from now on is of this model."""
        self._model_name = model_name
        self.prompt_tokens = self._prompt_tokens.labels(model_name)
        self.generation_tokens = self._generation_tokens.labels(model_name)
        self.per_token = self._per_token.labels(model_name)
        self.request_prompt_tokens = self._request_prompt_tokens.labels(model_name)
        self.request_generation_tokens = self._request_generation_tokens.labels(model_name)
        self.prompts = self._prompts.labels(model_name)
        self.llm_prompt_tokens = self._llm_prompt_tokens.labels(model_name)
        self.llm_tokens = self._llm_tokens.labels(model_name)
        self.errors = self._errors.labels(model_name)
        self.end_to_end = [one.labels(model_name) for one in self._end_to_end]
        self.first_token = [one.labels(model_name) for one in self._first_token]
        self.per_output_token = [one.labels(model_name) for one in self._per_output_token]
        self._speed.clear()
        self._speed.labels(model_name).set_function(self.speed.per_second)

    def start_request(self, prompt_tokens: int) -> RequestTimer:
        return RequestTimer(self, prompt_tokens)

    def success(self, reason: str) -> None:
        self._success.labels(self._model_name, reason).inc()


class RequestTimer:
    """Observes one request. `finish` counts once; later calls change nothing."""

    def __init__(self, metrics: Metrics, prompt_tokens: int) -> None:
        self._metrics, self._prompt_tokens = metrics, prompt_tokens
        self._began = time.monotonic()
        self._first = self._last = 0.0
        self._tokens = 0
        self._finished = False
        metrics.prompts.inc()

    def token(self) -> None:
        now = time.monotonic()
        metrics = self._metrics
        if self._tokens:
            metrics.per_token.observe(now - self._last)
        else:
            self._first = now
            observe_all(metrics.first_token, now - self._began)
            metrics.prompt_tokens.inc(self._prompt_tokens)
            metrics.llm_prompt_tokens.inc(self._prompt_tokens)
        self._tokens += 1
        self._last = now
        metrics.generation_tokens.inc()
        metrics.llm_tokens.inc()
        metrics.speed.add(now)

    def finish(self, reason: str) -> None:
        """`reason`: a finish reason, "abort" (the client left) or "error"."""
        if self._finished:
            return
        self._finished = True
        metrics = self._metrics
        metrics.success(reason)
        if reason == "error":
            metrics.errors.inc()
        if reason in ("error", "abort"):
            return
        observe_all(metrics.end_to_end, time.monotonic() - self._began)
        metrics.request_prompt_tokens.observe(self._prompt_tokens)
        metrics.request_generation_tokens.observe(self._tokens)
        if self._tokens > 1:
            mean = (self._last - self._first) / (self._tokens - 1)
            observe_all(metrics.per_output_token, mean)


class TokenSpeed:
    """Tokens per second of the last whole seconds, one count for each."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def add(self, now: float) -> None:
        second = int(now)
        if second not in self._counts:
            self._forget(second)
            self._counts[second] = 0
        self._counts[second] += 1

    def per_second(self) -> float:
        second = int(time.monotonic())
        self._forget(second)
        return sum(n for at, n in self._counts.items() if at < second) / _SPEED_WINDOW_S

    def _forget(self, second: int) -> None:
        oldest = second - _SPEED_WINDOW_S
        self._counts = {at: count for at, count in self._counts.items() if at >= oldest}


def observe_all(histograms: Iterable[Histogram], value: float) -> None:
    for histogram in histograms:
        histogram.observe(value)


class EngineCollector(Collector):
    """Reads the engine's statistics at each scrape."""

    def __init__(self, model_name: Callable[[], str], read: Callable[[], EngineStatistics]) -> None:
        self._model_name, self._read = model_name, read

    def collect(self) -> Iterable[Metric]:
        now = self._read()
        usage = now.kv_tokens_reserved / now.kv_tokens if now.kv_tokens else 0.0
        gauges = {
            "vllm:num_requests_running": ("Requests in the running batch", now.running),
            "vllm:num_requests_waiting": ("Requests that wait for a place", now.waiting),
            "vllm:kv_cache_usage_perc": ("Share of the KV cache reserved, 0 to 1", usage),
            "splitstack_group_ready": ("1 while requests are served", now.ready),
            "splitstack_group_failed": ("1 while three groups in a row have failed", now.failed),
            "splitstack_epoch": ("Life of the rank group in force", now.epoch),
            "splitstack_micro_batches": ("Micro-batches kept in flight", now.micro_batches),
            "splitstack_steps_in_flight": ("Steps in the pipeline", now.steps_in_flight),
            "splitstack_requests_held": ("Requests that wait for other weights", now.held),
            "splitstack_swap_running": (
                "1 while another spec is brought in",
                now.swap is not None and now.swap.running,
            ),
        }
        counters = {
            "splitstack_steps": ("Steps sent into the pipeline", now.steps),
            "vllm:prefix_cache_queries": (
                "Tokens of requests when they were admitted",
                now.admitted_tokens,
            ),
            "vllm:prefix_cache_hits": (
                "Those of them whose keys and values were there",
                now.reused_tokens,
            ),
            "splitstack_group_formations": ("Epochs formed", now.formations),
            "splitstack_group_losses": ("Epochs lost", now.losses),
            "splitstack_replays": ("Requests replayed into a new epoch", now.replays),
        }
        for name, (text, value) in gauges.items():
            yield self._family(GaugeMetricFamily, name, text, [((), float(value))])
        for name, (text, value) in counters.items():
            yield self._family(CounterMetricFamily, name, text, [((), float(value))])
        swaps = [((outcome,), float(count)) for outcome, count in now.swaps.items()]
        yield self._family(
            CounterMetricFamily, "splitstack_swaps", "Specs pushed, by outcome", swaps, "outcome"
        )
        if now.swap is not None:
            for name, text, bytes_of in (
                ("splitstack_swap_fetched_bytes", "Bytes of the new spec that are here", 0),
                ("splitstack_swap_wanted_bytes", "Bytes of the new spec that are wanted", 1),
            ):
                sizes = [
                    ((str(item.rank),), float((item.fetched_bytes, item.wanted_bytes)[bytes_of]))
                    for item in now.swap.ranks
                ]
                yield self._family(GaugeMetricFamily, name, text, sizes)
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
        label: str = "rank",
    ) -> Metric:
        """Each sample has no label values of its own, or its rank, or what `label` names."""
        found = list(samples)
        labelled = bool(found and found[0][0])
        family = kind(name, text, labels=("model_name", label) if labelled else ("model_name",))
        for labels, value in found:
            family.add_metric([self._model_name(), *labels], value)
        return family


def _by_rank(
    now: EngineStatistics, of: Callable[[RankStatistics], float]
) -> list[tuple[tuple[str, ...], float]]:
    return [((str(rank.rank),), float(of(rank))) for rank in now.ranks]
