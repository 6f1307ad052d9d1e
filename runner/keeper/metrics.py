"""What the engine measures, and what its keeper knows, as Prometheus reads both."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runner.keeper.lead import Lead

# AIOS's names beside the engine's own for the same.
SAME = {
    "vllm:prompt_tokens": "llm_prompt_tokens",
    "vllm:generation_tokens": "llm_tokens_generated",
    "vllm:e2e_request_latency_seconds": "llm_inference_duration_seconds",
    "vllm:time_to_first_token_seconds": "llm_time_to_first_token_seconds",
    "vllm:request_time_per_output_token_seconds": "llm_time_per_output_token_seconds",
}
_SUFFIXES = ("", "_total", "_bucket", "_sum", "_count", "_created")
_NAMES = {old + end: new + end for old, new in SAME.items() for end in _SUFFIXES}
_HEAD = re.compile(r"# (HELP|TYPE) (\S+)(.*)", re.DOTALL)
_SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)((?:\{.*\})? \S+.*)", re.DOTALL)
# Counts the engine's steps, whatever they compute.
STEPS = "vllm:iteration_tokens_total_count"
_FIGURES = (
    STEPS,
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:num_preemptions_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:prefix_cache_hits_total",
)


def with_own_names(text: str) -> str:
    """The engine's families, and behind them those that AIOS calls otherwise."""
    return text + "".join(f"{line}\n" for line in _renamed(text.splitlines()))


def _renamed(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if (head := _HEAD.fullmatch(line)) and head[2] in _NAMES:
            yield f"# {head[1]} {_NAMES[head[2]]}{head[3]}"
        elif (sample := _SAMPLE.fullmatch(line)) and sample[1] in _NAMES:
            yield f"{_NAMES[sample[1]]}{sample[2]}"


def figures(text: str) -> dict[str, float]:
    """Some of what the engine says of itself, by name, over all of its label values."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in _FIGURES:
            found[name] = found.get(name, 0.0) + float(line.rpartition(" ")[2])
    return found


class LeadCollector(Collector):
    """The group, under the names that it has with our own stages."""

    def __init__(self, lead: Lead) -> None:
        self._lead = lead

    def collect(self) -> Iterable[Metric]:
        lead, history = self._lead, self._lead.history
        model = lead.in_force.spec.model_name if lead.in_force else ""
        gauges = {
            "splitstack_group_ready": ("1 while requests are served", lead.ready),
            "splitstack_group_failed": ("1 while epochs in a row failed", lead.state == "failed"),
            "splitstack_epoch": ("Life of the rank group in force", history.epoch),
            "splitstack_requests_held": (
                "Requests that wait for other weights",
                lead.requests.gate.waiting,
            ),
            "splitstack_swap_running": (
                "1 while another spec is brought in",
                lead.swap is not None and lead.swap.running,
            ),
        }
        counters = {
            "splitstack_group_formations": ("Epochs formed", history.formations),
            "splitstack_group_losses": ("Epochs lost", history.losses),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(name, text, labels=("model_name",))
            gauge.add_metric((model,), float(value))
            yield gauge
        for name, (text, number) in counters.items():
            counter = CounterMetricFamily(name, text, labels=("model_name",))
            counter.add_metric((model,), float(number))
            yield counter
        swaps = CounterMetricFamily(
            "splitstack_swaps", "Specs pushed, by outcome", labels=("model_name", "outcome")
        )
        for outcome, count in history.swaps.items():
            swaps.add_metric((model, outcome), float(count))
        yield swaps
        restarts = CounterMetricFamily(
            "splitstack_stage_restarts",
            "Processes that took the rank over",
            labels=("model_name", "rank"),
        )
        for rank, times in enumerate(history.restarts(len(lead.joins()))):
            restarts.add_metric((model, str(rank)), float(times))
        yield restarts
