"""Requests counted and timed by route, and GET /metrics."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web.errors import CLIENT_LEFT

LATENCY_BUCKETS_S = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class RequestMetrics:
    """Pure ASGI middleware; `routes` are the paths counted by name, every other one is "other"."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry, routes: Iterable[str]) -> None:
        self._app, self._routes = app, frozenset(routes)
        self._requests = Counter(
            "http_requests_total", "Requests answered.", ("route", "status"), registry=registry
        )
        self._in_flight = Gauge(
            "http_requests_in_flight", "Requests being answered.", ("route",), registry=registry
        )
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "From the request to the last byte of its answer.",
            ("route",),
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in self._routes else "other"
        status, started = str(CLIENT_LEFT), time.monotonic()

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        self._in_flight.labels(route).inc()
        try:
            await self._app(scope, receive, send_and_note)
        except Exception:
            status = "500"
            raise
        finally:
            self._in_flight.labels(route).dec()
            self._requests.labels(route, status).inc()
            self._seconds.labels(route).observe(time.monotonic() - started)


def metrics_response(registry: CollectorRegistry) -> Response:
    """The registry in Prometheus' text format."""
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def metrics_endpoint(request: Request) -> Response:
    """GET /metrics of an application that keeps its registry in `app.state.registry`."""
    return metrics_response(request.app.state.registry)
