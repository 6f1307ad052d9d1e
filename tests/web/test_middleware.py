"""Counting by route, with the names of unknown paths kept out."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from web.health import health_routes
from web.middleware import RequestMetrics


def test_routes_are_counted_by_status() -> None:
    async def fail(_: Request) -> Response:
        raise RuntimeError

    async def ready(_itself: bool) -> str:
        return ""

    registry = CollectorRegistry()
    app = Starlette(routes=[Route("/fail", fail), *health_routes(ready, registry)])
    app.add_middleware(RequestMetrics, registry=registry, routes=["/fail"])
    client = TestClient(app, raise_server_exceptions=False)
    client.get("/fail")
    client.get("/guess-1")
    client.get("/guess-2")
    text = client.get("/metrics").text
    assert 'http_requests_total{route="/fail",status="500"} 1.0' in text
    assert 'http_requests_total{route="other",status="404"} 2.0' in text
    assert "guess" not in text
