"""Prometheus metrics of the master: vLLM's names, and the llm_* names of AIOS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runner.master.engine_report import EngineStatistics

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_LABELS = ("model_name",)


class Metrics:
    """Counters and histograms of one master; the engine's own come from `statistics`."""

    def __init__(self, model_name: str, statistics: Callable[[], EngineStatistics]) -> None:
        self.registry = CollectorRegistry()
        self._model_name = model_name

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, _LABELS, registry=self.registry).labels(model_name)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(name, text, _LABELS, buckets=buckets, registry=self.registry)
            return family.labels(model_name)

        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens processed")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens generated")
        self.requests = counter("llm_requests", "Requests begun")
        self.tokens_generated = counter("llm_tokens_generated", "Tokens generated")
        self.failures = counter("llm_request_failures", "Requests that ended with an error")
        self.latency = histogram("llm_request_latency_seconds", "Whole request", _SECONDS)
        self.end_to_end = histogram("vllm:e2e_request_latency_seconds", "Whole request", _SECONDS)
        self.first_token = histogram(
            "vllm:time_to_first_token_seconds", "Until the first token", _SECONDS
        )
        self.per_token = histogram(
            "vllm:inter_token_latency_seconds", "Between two tokens of a request", _TOKEN_SECONDS
        )
        self.per_output_token = histogram(
            "vllm:request_time_per_output_token_seconds", "Mean of a request", _TOKEN_SECONDS
        )
        self._success = Counter(
            "vllm:request_success",
            "Requests that ended, by how",
            (*_LABELS, "finished_reason"),
            registry=self.registry,
        )
        self.registry.register(_EngineCollector(model_name, statistics))

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
        metrics.requests.inc()

    def token(self) -> None:
        now = time.monotonic()
        metrics = self._metrics
        if self._tokens:
            metrics.per_token.observe(now - self._last)
        else:
            self._first = now
            metrics.first_token.observe(now - self._began)
            metrics.prompt_tokens.inc(self._prompt_tokens)
        self._tokens += 1
        self._last = now
        metrics.generation_tokens.inc()
        metrics.tokens_generated.inc()

    def finish(self, reason: str) -> None:
        """`reason`: a finish reason, "abort" (the client left) or "error"."""
        if self._finished:
            return
        self._finished = True
        metrics = self._metrics
        metrics.success(reason)
        if reason == "error":
            metrics.failures.inc()
        if reason in ("error", "abort"):
            return
        elapsed = time.monotonic() - self._began
        metrics.end_to_end.observe(elapsed)
        metrics.latency.observe(elapsed)
        if self._tokens > 1:
            metrics.per_output_token.observe((self._last - self._first) / (self._tokens - 1))


class _EngineCollector(Collector):
    """What the engine counts itself, read at each scrape."""

    def __init__(self, model_name: str, read: Callable[[], EngineStatistics]) -> None:
        self._model_name, self._read = model_name, read

    def collect(self) -> Iterable[Metric]:
        now = self._read()
        usage = now.kv_tokens_reserved / now.kv_tokens if now.kv_tokens else 0.0
        gauges = {
            "vllm:num_requests_running": ("Requests in the running batch", now.running),
            "vllm:num_requests_waiting": ("Requests that wait for a place", now.waiting),
            "vllm:kv_cache_usage_perc": ("Share of the KV cache reserved, 0 to 1", usage),
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
            gauge = GaugeMetricFamily(name, text, labels=_LABELS)
            gauge.add_metric([self._model_name], value)
            yield gauge
        for name, (text, value) in counters.items():
            counter = CounterMetricFamily(name, text, labels=_LABELS)
            counter.add_metric([self._model_name], value)
            yield counter
