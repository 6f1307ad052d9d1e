"""A stage's /livez, /readyz and /metrics, served from the control thread."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from web.metrics import metrics_response

Check = Callable[[], str]


def health_app(livez: Check, readyz: Check, metrics: CollectorRegistry) -> Starlette:
    """200 where the check returns "", else 503 and what it returned as the reason."""

    def answer(check: Check) -> Callable[[Request], JSONResponse]:
        def respond(_: Request) -> JSONResponse:
            reason = check()
            body = {"status": "unavailable", "reason": reason} if reason else {"status": "ok"}
            return JSONResponse(body, status_code=503 if reason else 200)

        return respond

    async def live(request: Request) -> JSONResponse:
        return answer(livez)(request)

    async def ready(request: Request) -> JSONResponse:
        return answer(readyz)(request)

    async def measured(_: Request) -> Response:
        return metrics_response(metrics)

    routes = [Route("/livez", live), Route("/readyz", ready), Route("/metrics", measured)]
    return Starlette(routes=routes)


async def serve_health(app: Starlette, listening: socket.socket) -> None:
    """Until cancelled. Access is not logged: a probe comes every second."""
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    try:
        await server.serve(sockets=[listening])
    finally:
        listening.close()
