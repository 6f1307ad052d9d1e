"""What the master says of itself: health, models, metrics, topology. Never through the queue."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runner.master.api.prompts import MasterService, service_of
from web.events import Events, EventStream, event

# A watcher is told of changes no oftener, and hears of an idle pipeline no less often.
CHANGE_S = 0.25
REPEAT_S = 3.0


async def livez(_request: Request) -> Response:
    return JSONResponse({"live": True})


async def readyz(request: Request) -> Response:
    """200 while requests are served; 503 with the reason while starting, draining or failed."""
    engine = service_of(request).engine
    if engine.ready:
        return JSONResponse({"ready": True})
    state = {"ready": False, "state": engine.state, "reason": engine.reason}
    return JSONResponse(state, status_code=503)


async def models(request: Request) -> Response:
    """The served model under its own name and under the deployment's."""
    service = service_of(request)
    names = dict.fromkeys((service.spec.model_name, service.spec.deployment_name))
    return JSONResponse({"object": "list", "data": [_model(service, name) for name in names]})


async def model(request: Request) -> Response:
    service = service_of(request)
    name = request.path_params["name"]
    service.check_model(name)
    return JSONResponse(_model(service, name))


def _model(service: MasterService, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "splitstack",
        "root": service.spec.model_name,
        "max_model_len": service.engine.max_model_len,
    }


async def metrics(request: Request) -> Response:
    text = generate_latest(service_of(request).metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)


async def topology(request: Request) -> Response:
    """Ranks, layers, bytes, times, bubble ratio: see Engine.topology."""
    return JSONResponse(_topology(service_of(request)))


async def topology_events(request: Request) -> Response:
    """The topology as server-sent events: at once, at each change, and once in a while."""
    return EventStream(_topology_events(service_of(request)))


async def _topology_events(service: MasterService) -> Events:
    told, told_at = b"", 0.0
    while True:
        found, now = event(_topology(service)), time.monotonic()
        if found != told or now - told_at > REPEAT_S:
            told, told_at = found, now
            yield found
        await asyncio.sleep(CHANGE_S)


def _topology(service: MasterService) -> dict[str, Any]:
    return {
        "deployment_name": service.spec.deployment_name,
        "model_name": service.spec.model_name,
        "ready": service.engine.ready,
        **service.engine.topology(),
    }
