"""A stage's /startedz, /livez, /readyz and /metrics, served from the control thread."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from web.health import metrics_response

Check = Callable[[], str]
_LABELS = ("model_name", "rank")
DEVICE_GAUGES = {
    "splitstack_stage_gpu_memory_bytes": "Bytes of the GPU's memory",
    "splitstack_stage_gpu_memory_used_bytes": "Bytes of it that somebody has, whoever it is",
    "splitstack_stage_gpu_memory_reserved_bytes": "Bytes of it that this process keeps",
    "llm_gpu_utilization": "Percent of the last moment in which the GPU computed",
}
_STATM = Path("/proc/self/statm")
_RESIDENT_PAGES = 1  # its second field


def health_app(livez: Check, readyz: Check, metrics: CollectorRegistry) -> Starlette:
    """200 where the check returns "", else 503 and what it returned as the reason. /startedz is
    always 200: it answers."""

    def answer(check: Check) -> Callable[[Request], Awaitable[Response]]:
        async def respond(_: Request) -> Response:
            reason = check()
            body = {"status": "unavailable", "reason": reason} if reason else {"status": "ok"}
            return JSONResponse(body, status_code=503 if reason else 200)

        return respond

    async def measured(_: Request) -> Response:
        return metrics_response(metrics)

    checks = [
        Route(path, answer(check))
        for path, check in (("/startedz", lambda: ""), ("/livez", livez), ("/readyz", readyz))
    ]
    return Starlette(routes=[*checks, Route("/metrics", measured)])


async def serve_health(app: Starlette, listening: socket.socket) -> None:
    """Until cancelled. Access is not logged: a probe comes every second."""
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    try:
        await server.serve(sockets=[listening])
    finally:
        listening.close()


class StageMetrics(Collector):
    """What the process says of itself; its step times are in the master's metrics.

    `ready` tells at each scrape whether weights are loaded, `model_name` of which model, and
    `device` those of DEVICE_GAUGES that there are.
    """

    def __init__(
        self,
        rank: int,
        *,
        model_name: Callable[[], str],
        ready: Callable[[], bool],
        device: Callable[[], Mapping[str, float]],
    ) -> None:
        self.registry = CollectorRegistry()
        self._rank, self._model_name, self._ready = str(rank), model_name, ready
        self._device = device
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
        for name, value in self._device().items():
            yield self._gauge(name, DEVICE_GAUGES[name], value)

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=_LABELS)
        family.add_metric((self._model_name(), self._rank), value)
        return family

    def _utilization(self) -> float:
        now, computed = time.monotonic(), time.process_time()
        elapsed, spent = now - self._looked_at, computed - self._computed
        self._looked_at, self._computed = now, computed
        return 100 * spent / elapsed if elapsed > 0 else 0.0


def _resident() -> float:
    pages = int(_STATM.read_text().split()[_RESIDENT_PAGES])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))
