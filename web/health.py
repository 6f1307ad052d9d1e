"""What a process says of itself: /livez, /readyz and /metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

# Asked whether the process alone is meant; says why it does not serve, "" where it does.
NotReady = Callable[[bool], Awaitable[str]]


def health_routes(
    not_ready: NotReady, registry: CollectorRegistry, readiness: Sequence[str] = ("/readyz",)
) -> list[Route]:
    """Those of `readiness` are 200 where the process and what it needs serve; `?self` asks about
    it alone."""

    async def livez(_request: Request) -> Response:
        return JSONResponse({"live": True})

    async def readyz(request: Request) -> Response:
        if reason := await not_ready("self" in request.query_params):
            return JSONResponse({"ready": False, "reason": reason}, 503)
        return JSONResponse({"ready": True})

    async def metrics(_request: Request) -> Response:
        return metrics_response(registry)

    ready = [Route(path, readyz) for path in readiness]
    return [Route("/livez", livez), *ready, Route("/metrics", metrics)]


def metrics_response(
    registry: CollectorRegistry, content_type: str = CONTENT_TYPE_LATEST
) -> Response:
    """The registry in Prometheus' text format, in the version that `content_type` says."""
    return Response(generate_latest(registry), headers={"Content-Type": content_type})
