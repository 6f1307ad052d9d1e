"""The public HTTP surface."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from inference_server.block_table import BlockTable
from inference_server.infer_request import parse_infer_request
from service.body import read_json_object
from service.contract import InferenceServerSpec
from service.disconnect import until_disconnected
from service.error_body import ApiError, install_error_handlers
from service.metrics import RequestMetrics, metrics_endpoint
from service.relay import relay

OPENAI_PATHS = ("/v1/chat/completions", "/v1/completions")


class InferenceServer:
    """What the endpoints share."""

    def __init__(self, spec: InferenceServerSpec) -> None:
        self.spec = spec
        self.table = BlockTable(spec)
        self._started = int(time.time())

    async def infer(self, request: Request) -> Response:
        """POST /v1/infer; what a block refuses is passed on as the block says it."""
        document = await read_json_object(request, self.spec.max_body_bytes)
        asked = parse_infer_request(document)
        block = self.table.by_id(asked.model)
        work = block.upstream.ask(
            "/infer", {"session_id": asked.session_id, "seq_no": asked.seq_no, "data": asked.data}
        )
        answer = await until_disconnected(request.receive, work)
        if answer.status != 200:
            return Response(answer.content, answer.status, answer.headers)
        data = answer.document().get("data")
        if not isinstance(data, dict):
            raise ApiError(502, f"{block.upstream.name} answered without data")
        return JSONResponse(
            {
                "model": asked.model,
                "session_id": asked.session_id,
                "seq_no": asked.seq_no,
                "ts": time.time(),
                "data": data,
            }
        )

    async def openai(self, request: Request) -> Response:
        """OpenAI's endpoints, passed to the block that `model` names."""
        document = await read_json_object(request, self.spec.max_body_bytes)
        name = document.get("model")
        if not isinstance(name, str) or not name:
            message = "model: must be a string that names a block or its model"
            raise ApiError(400, message, param="model", code="invalid_value", value=name)
        block = await self.table.by_model(name)
        return await relay(request, block.upstream, request.url.path, document)

    async def models(self, _request: Request) -> Response:
        """The blocks, each under its id: what `model` may be."""
        entries = [
            {
                "id": block.spec.block_id,
                "object": "model",
                "created": self._started,
                "owned_by": self.spec.deployment_name,
                "names": sorted(await block.model_names()),
            }
            for block in self.table.blocks()
        ]
        return JSONResponse({"object": "list", "data": entries})

    async def livez(self, _request: Request) -> Response:
        return JSONResponse({"live": True})

    async def readyz(self, request: Request) -> Response:
        """True when a request would be served by some block; `?self`: this process alone."""
        reason = "" if "self" in request.query_params else await self.table.not_ready()
        if reason:
            return JSONResponse({"ready": False, "reason": reason}, 503)
        return JSONResponse({"ready": True})

    def routes(self) -> list[Route]:
        return [
            Route("/v1/infer", self.infer, methods=["POST"]),
            *(Route(path, self.openai, methods=["POST"]) for path in OPENAI_PATHS),
            Route("/v1/models", self.models),
            Route("/livez", self.livez),
            Route("/readyz", self.readyz),
            Route("/metrics", metrics_endpoint),
        ]


def build_app(spec: InferenceServerSpec) -> Starlette:
    server = InferenceServer(spec)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await server.table.close()

    registry = CollectorRegistry()
    routes = server.routes()
    middleware = [
        Middleware(RequestMetrics, registry=registry, routes=[route.path for route in routes])
    ]
    app = Starlette(routes=routes, middleware=middleware, lifespan=lifespan)
    app.state.registry = registry
    install_error_handlers(app)
    return app
