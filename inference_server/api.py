"""The public HTTP surface: the endpoints, and what surrounds them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry, Gauge
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from contract.specs import InferenceServerSpec
from inference_server.blocks.table import BlockTable
from inference_server.blocks_api import BlocksApi
from inference_server.infer.api import INFER_PATH, InferApi
from inference_server.keys.access import Access
from inference_server.keys.api_keys import ApiKeys
from inference_server.openai_api import OPENAI_PATHS, OpenAIApi
from inference_server.openapi import openapi_document
from inference_server.page_files import page_routes
from inference_server.pipeline import PipelineApi
from inference_server.request_log import LogApi, RequestLog
from inference_server.server import InferenceServer
from web.carry import Carrier
from web.errors import install_error_handlers
from web.health import health_routes
from web.middleware import RequestMetrics
from web.openapi import openapi_route
from web.request_id import HEADER as REQUEST_ID
from web.serve import READINESS


def build_app(
    spec: InferenceServerSpec, keys: ApiKeys | None = None, log: RequestLog | None = None
) -> Starlette:
    """The application; `keys` None: everybody may ask. It closes `log` at its end."""
    registry = CollectorRegistry()
    table = BlockTable(spec.blocks, spec.request_deadline_s)
    server = InferenceServer(spec, table, Carrier(registry), log)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with _discovering(server):
            yield
        await server.table.close()
        if log is not None:
            await asyncio.to_thread(log.close)

    _watch_log(registry, log)
    routes = [
        *InferApi(server).routes(),
        *OpenAIApi(server).routes(),
        *BlocksApi(server).routes(),
        *LogApi(log).routes(),
        *PipelineApi(server).routes(),
        *page_routes(),
        openapi_route(openapi_document(f"Splitstack {spec.deployment_name}")),
        *health_routes(server.not_ready, registry, READINESS),
    ]
    middleware = [
        Middleware(RequestMetrics, registry=registry, routes=[route.path for route in routes]),
        *_cross_origin(spec.cors_origins),
        Middleware(Access, keys=keys, limited=(INFER_PATH, *OPENAI_PATHS)),
    ]
    app = Starlette(routes=routes, middleware=middleware, lifespan=lifespan)
    # What who asks for another path is told.
    install_error_handlers(app, (INFER_PATH, *OPENAI_PATHS, "/v1/models", "/openapi.json"))
    return app


def _cross_origin(origins: tuple[str, ...]) -> list[Middleware]:
    """Before the key is asked for: a browser's preflight brings none, and is to read a refusal."""
    if not origins:
        return []
    allowed = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        # OpenAI's client sends many of its own.
        allow_headers=("*",),
        expose_headers=(REQUEST_ID, "Retry-After"),
    )
    return [allowed]


@asynccontextmanager
async def _discovering(server: InferenceServer) -> AsyncIterator[None]:
    """With a discovery namespace the cluster's Services fill the block table."""
    if not server.spec.discovery_namespace:
        yield
        return
    # Imports the whole Kubernetes API, which a static table has no use for.
    from inference_server.blocks.discovery import Discovery

    discovery = Discovery(server.spec.discovery_namespace, server.table)
    server.not_synced = discovery.not_synced
    task = asyncio.create_task(discovery.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _watch_log(registry: CollectorRegistry, log: RequestLog | None) -> None:
    if log is not None:
        dropped = Gauge(
            "request_log_rows_dropped", "Rows that the disk was too slow for.", registry=registry
        )
        dropped.set_function(lambda: log.dropped)
