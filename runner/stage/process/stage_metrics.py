"""What a stage's process says of itself to Prometheus; its step times are in the master's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_LABELS = ("model_name", "rank")
_STATM = Path("/proc/self/statm")
_RESIDENT_PAGES = 1  # its second field


class StageMetrics(Collector):
    """`ready` tells at each scrape whether the weights are loaded."""

    def __init__(self, model_name: str, rank: int, ready: Callable[[], bool]) -> None:
        self.registry = CollectorRegistry()
        self._labels, self._ready = (model_name, str(rank)), ready
        self._looked_at = time.monotonic()
        self._computed = time.process_time()
        self.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        yield self._gauge(
            "splitstack_stage_ready", "1 when the weights are loaded", float(self._ready())
        )
        yield self._gauge("llm_memory_usage_bytes", "Resident memory of the process", _resident())
        yield self._gauge(
            "llm_cpu_utilization",
            "Percent of one core since the last scrape, all threads",
            self._utilization(),
        )

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=_LABELS)
        family.add_metric(self._labels, value)
        return family

    def _utilization(self) -> float:
        now, computed = time.monotonic(), time.process_time()
        elapsed, spent = now - self._looked_at, computed - self._computed
        self._looked_at, self._computed = now, computed
        return 100 * spent / elapsed if elapsed > 0 else 0.0


def _resident() -> float:
    pages = int(_STATM.read_text().split()[_RESIDENT_PAGES])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))
