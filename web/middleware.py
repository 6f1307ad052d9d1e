"""What is noted of every request: a line in the log, and its count and time by route."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web.errors import CLIENT_LEFT

MAX_PATH = 200
LATENCY_BUCKETS_S = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
log = logging.getLogger("web.access")


class _Noted:
    """One request's answer in passing: its status, None where nothing was sent, and its time."""

    def __init__(self, send: Send) -> None:
        self._send, self._began = send, time.monotonic()
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began


class AccessLog:
    """Pure ASGI; one line for each request when it has been answered, never its body or query.

    `quiet` are the paths that are asked for all the time and not worth a line. `status` is null
    where the client left first.
    """

    def __init__(self, app: ASGIApp, quiet: Collection[str]) -> None:
        self._app, self._quiet = app, frozenset(quiet)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._quiet:
            await self._app(scope, receive, send)
            return
        noted = _Noted(send)
        try:
            await self._app(scope, receive, noted.send)
        finally:
            fields = {
                "method": scope["method"],
                "path": scope["path"][:MAX_PATH],
                "status": noted.status,
                "duration_ms": round(noted.seconds * 1e3, 1),
            }
            log.info("request", extra={"fields": fields})


class RequestMetrics:
    """Pure ASGI; `routes` are the paths counted by name, every other one is "other"."""

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
        noted = _Noted(send)
        self._in_flight.labels(route).inc()
        try:
            await self._app(scope, receive, noted.send)
        except Exception:
            noted.status = 500
            raise
        finally:
            self._in_flight.labels(route).dec()
            self._requests.labels(route, str(noted.status or CLIENT_LEFT)).inc()
            self._seconds.labels(route).observe(noted.seconds)
