"""The proxy block's HTTP surface."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from contract.carry import AGAIN_HEADER
from contract.specs import ProxySpec
from proxy_block.active_sessions import ActiveSessions
from proxy_block.aios_chat import openai_chat
from proxy_block.block_request import parse_block_request, parse_management_request
from proxy_block.component import component_document
from proxy_block.conversation import Conversations
from proxy_block.generation_config import with_generation_config
from proxy_block.master_client import CHAT_PATH, COMPLETIONS_PATH, Master, UpstreamRefused
from proxy_block.openapi import openapi_document
from proxy_block.stores.interface import SessionStore, StoreUnavailable
from web.body import read_json_object
from web.carry import Carrier, asks_for_ids
from web.disconnect import until_disconnected
from web.domain import DomainMiddleware, domain_of
from web.errors import error_response, install_error_handlers
from web.events import EventStream
from web.health import health_routes
from web.middleware import RequestMetrics
from web.openapi import openapi_route
from web.proof import Proof
from web.upstream import Upstream

OPENAI_PATHS = (CHAT_PATH, COMPLETIONS_PATH)
GENERATING = ("/infer", "/v1/chat/", *OPENAI_PATHS)


class ProxyBlock:
    """What the endpoints of one block share."""

    def __init__(
        self,
        spec: ProxySpec,
        defaults: Mapping[str, Any],
        store: SessionStore,
        registry: CollectorRegistry,
    ) -> None:
        self.spec, self.defaults, self.store = spec, defaults, store
        self.active = ActiveSessions()
        self.active.register(registry)
        self.carrier = Carrier(registry)
        self.master = Upstream(
            "the rank master", spec.upstream_url, deadline_s=spec.request_deadline_s
        )
        self.asking = Master(spec, defaults, self.master, self.carrier)
        self.conversations = Conversations(self.asking, store, spec.request_deadline_s)

    async def infer(self, request: Request) -> Response:
        """POST /infer {session_id, seq_no, data} -> {"data": ...}."""
        block_request = parse_block_request(await self._body(request))
        self.active.note(block_request.session_id)
        again = AGAIN_HEADER in request.headers
        work = self.conversations.answer(block_request, again=again)
        try:
            data = await until_disconnected(request.receive, work)
        except UpstreamRefused as refused:
            return refused.answer.response()
        return JSONResponse({"data": data})

    async def management(self, request: Request) -> Response:
        """POST /management {"action": "reset", "data": {"session_id"?}} -> {"data": {...}}."""
        reset = parse_management_request(await self._body(request))
        count = await self.conversations.reset(reset.session_id)
        return JSONResponse({"action": "reset", "data": {"sessions_reset": count}})

    async def openai(self, request: Request) -> Response:
        """OpenAI's endpoints, passed through; the block's id is a name of the model too."""
        return await self._passed_on(request, request.url.path, await self._body(request))

    async def aios_chat(self, request: Request) -> Response:
        """AIOS's POST /v1/chat/, answered as OpenAI's chat; the model may be left out."""
        document = openai_chat(await self._body(request))
        document.setdefault("model", self.spec.block_id)
        return await self._passed_on(request, CHAT_PATH, document)

    async def _passed_on(self, request: Request, path: str, asked: dict[str, Any]) -> Response:
        """With the block's generation_config and chat_template_kwargs where `asked` has none."""
        document = with_generation_config(asked, self.defaults)
        if document.get("model") == self.spec.block_id:
            document["model"] = self.spec.deployment_name
        if path == CHAT_PATH:
            document = self.asking.with_defaults(document)
        passes_lines = asks_for_ids(request.headers)
        work = self.carrier.ask(self.master, path, document, passes_lines=passes_lines)
        return (await until_disconnected(request.receive, work)).response()

    async def session(self, request: Request) -> Response:
        """GET /sessions/{session_id}: whether it is here, and how far it is; never its texts."""
        session_id = request.path_params["session_id"]
        found = await self.store.read(session_id)
        return JSONResponse(
            {"session_id": session_id, "seq_no": found.seq_no, "turns": len(found.turns)}
        )

    async def models(self, _request: Request) -> Response:
        return JSONResponse(await self.master.get("/v1/models"))

    async def component(self, _request: Request) -> Response:
        return JSONResponse(component_document(self.spec))

    async def topology_events(self, _request: Request) -> Response:
        """The master's pipeline as it changes, for whoever draws it."""
        return EventStream(self.master.live_events("/topology/events"))

    async def not_ready(self, itself: bool) -> str:
        """Why master or session store does not serve, "" where both do; as in web.health."""
        return "" if itself else await self.master.ready() or await self.store.not_ready()

    async def _body(self, request: Request) -> dict[str, Any]:
        return await read_json_object(request, self.spec.max_body_bytes)

    def routes(self) -> list[Route]:
        return [
            Route("/infer", self.infer, methods=["POST"]),
            Route("/management", self.management, methods=["POST"]),
            *(Route(path, self.openai, methods=["POST"]) for path in OPENAI_PATHS),
            Route("/v1/chat/", self.aios_chat, methods=["POST"]),
            Route("/sessions/{session_id:path}", self.session),
            Route("/v1/models", self.models),
            Route("/component.json", self.component),
            openapi_route(openapi_document(self.spec)),
            Route("/topology/events", self.topology_events),
        ]


def build_app(
    spec: ProxySpec,
    defaults: Mapping[str, Any],
    store: SessionStore,
    management_key: Callable[[], str] | None = None,
) -> Starlette:
    """The application; it closes `store` at its end.

    `defaults` is the block's generation_config, checked. `management_key` as in Proof.
    """
    registry = CollectorRegistry()
    block = ProxyBlock(spec, defaults, store, registry)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await block.master.close()
        await store.close()

    async def store_failed(_request: Request, error: Exception) -> Response:
        headers = {"Retry-After": "1"}
        return error_response(503, str(error), code="session_store_unavailable", headers=headers)

    proof = Proof(spec.bind_address, management_key)
    routes = proof.guard([*block.routes(), *health_routes(block.not_ready, registry)], GENERATING)
    middleware = [
        Middleware(DomainMiddleware, otherwise=domain_of(spec.block_id)),
        Middleware(RequestMetrics, registry=registry, routes=[route.path for route in routes]),
    ]
    app = Starlette(routes=routes, middleware=middleware, lifespan=lifespan)
    install_error_handlers(app)
    app.add_exception_handler(StoreUnavailable, store_failed)
    return app
