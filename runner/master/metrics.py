"""Prometheus metrics of requests: vLLM's names, and the llm_* names of AIOS's LLMMetrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from runner.master.engine.report import EngineStatistics
from runner.master.engine_metrics import EngineCollector

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
_LABELS = ("model_name",)
_SPEED_WINDOW_S = 10


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
        self.per_token = histogram(
            "vllm:inter_token_latency_seconds", "Between two tokens of a request", _TOKEN_SECONDS
        )
        self.request_prompt_tokens = histogram(
            "vllm:request_prompt_tokens", "Prompt tokens of a request", _TOKENS
        )
        self.request_generation_tokens = histogram(
            "vllm:request_generation_tokens", "Tokens generated for a request", _TOKENS
        )
        self.prompts = counter("llm_prompts", "Prompts received")
        self.llm_prompt_tokens = counter("llm_prompt_tokens", "Prompt tokens processed")
        self.llm_tokens = counter("llm_tokens_generated", "Tokens generated")
        self.errors = counter("llm_inference_errors", "Requests that ended with an error")
        # Each pair measures the same under vLLM's name and under AIOS's.
        self.end_to_end = (
            histogram("vllm:e2e_request_latency_seconds", "Whole request", _SECONDS),
            histogram("llm_inference_duration_seconds", "Whole request", _SECONDS),
        )
        self.first_token = (
            histogram("vllm:time_to_first_token_seconds", "Until the first token", _SECONDS),
            histogram("llm_time_to_first_token_seconds", "Until the first token", _SECONDS),
        )
        self.per_output_token = (
            histogram(
                "vllm:request_time_per_output_token_seconds", "Mean of a request", _TOKEN_SECONDS
            ),
            histogram("llm_time_per_output_token_seconds", "Mean of a request", _TOKEN_SECONDS),
        )
        speed = Gauge(
            "llm_tokens_per_second",
            f"Tokens generated per second, over the last {_SPEED_WINDOW_S} seconds",
            _LABELS,
            registry=self.registry,
        )
        self.speed = TokenSpeed()
        speed.labels(model_name).set_function(self.speed.per_second)
        self._success = Counter(
            "vllm:request_success",
            "Requests that ended, by how",
            (*_LABELS, "finished_reason"),
            registry=self.registry,
        )
        self.registry.register(EngineCollector(model_name, statistics))

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
