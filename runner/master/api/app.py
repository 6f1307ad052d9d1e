"""The master's HTTP application: its routes, and what it says of itself without the queue."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from contract.signed_request import Verifier
from contract.specs import MasterSpec
from runner.master.api.chat import aios_chat, chat_completions
from runner.master.api.completions import completions, generate, get_config, set_config
from runner.master.api.errors import install_failure_handler
from runner.master.api.group_spec import PATH as GROUP_SPEC
from runner.master.api.group_spec import get_group_spec, put_group_spec
from runner.master.api.served_models import ServedModels, Texts
from runner.master.engine.engine import Engine
from web.domain import DomainMiddleware
from web.errors import install_error_handlers
from web.events import EventStream, changes
from web.health import metrics_response
from web.proof import Proof

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]
GENERATING = ("/generate", "/v1/completions", "/v1/chat/completions", "/v1/chat/")
# What who asks for another path is told.
SERVED = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/generate", "/set_config")


def create_app(
    spec: MasterSpec,
    engine: Engine,
    texts: Texts,
    lifespan: Lifespan | None = None,
    management_key: Callable[[], str] | None = None,
    verifier: Verifier | None = None,
) -> Starlette:
    """`lifespan` starts and ends what lives beside the API, on the same event loop.

    `management_key` as in Proof; `verifier` takes the signatures of who pushes a spec.
    """
    proof = Proof(spec.bind_address, management_key)
    app = Starlette(
        routes=proof.guard(_routes(), (*GENERATING, GROUP_SPEC)),
        middleware=[Middleware(DomainMiddleware)],
        lifespan=lifespan,
    )
    state = app.state
    state.spec, state.engine, state.verifier = spec, engine, verifier
    state.models = ServedModels(engine, texts)
    state.created = int(time.time())
    install_error_handlers(app, SERVED)
    install_failure_handler(app)
    return app


def _routes() -> list[Route]:
    return [
        Route("/generate", generate, methods=["POST"]),
        Route("/set_config", set_config, methods=["POST"]),
        Route("/set_config", get_config, methods=["GET"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/chat/", aios_chat, methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", model, methods=["GET"]),
        Route("/livez", livez, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route(GROUP_SPEC, get_group_spec, methods=["GET"]),
        Route(GROUP_SPEC, put_group_spec, methods=["PUT"]),
        Route("/topology", topology, methods=["GET"]),
        Route("/topology/events", topology_events, methods=["GET"]),
    ]


async def livez(_request: Request) -> Response:
    return JSONResponse({"live": True})


async def readyz(request: Request) -> Response:
    """200 while requests are served; 503 with the reason and Retry-After while not.

    With `?self` 200 before there is anything to serve, too: a first spec is handed over only to
    pods that are ready.
    """
    engine: Engine = request.app.state.engine
    waits = "self" in request.query_params and engine.in_force is None
    # Requests that come while the weights are exchanged are held, not refused.
    if engine.ready or engine.gate.closed or waits:
        return JSONResponse({"ready": True})
    state = {"ready": False, "state": engine.state, "reason": engine.reason}
    headers = {"Retry-After": str(engine.retry_after_s)}
    return JSONResponse(state, status_code=503, headers=headers)


async def models(request: Request) -> Response:
    """The served model under its own name and under the deployment's."""
    state = request.app.state
    names = dict.fromkeys((state.models.current().spec.model_name, state.spec.deployment_name))
    return JSONResponse({"object": "list", "data": [_model(state, name) for name in names]})


async def model(request: Request) -> Response:
    state, name = request.app.state, request.path_params["name"]
    state.models.current().prompts.check_model(name)
    return JSONResponse(_model(state, name))


def _model(state: State, name: str) -> dict[str, Any]:
    served = state.models.current()
    template = served.text.chat_template
    return {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "splitstack",
        "root": served.spec.model_name,
        "max_model_len": state.engine.max_model_len,
        "generation_config": state.models.defaults.in_force(),
        "merges_system_messages": template is not None and template.merges_system,
        "keeps_reasoning": template is not None and template.keeps_reasoning,
    }


async def metrics(request: Request) -> Response:
    return metrics_response(request.app.state.models.metrics.registry, CONTENT_TYPE_PLAIN_0_0_4)


async def topology(request: Request) -> Response:
    """Ranks, layers, bytes, times, bubble ratio: see Engine.topology."""
    return JSONResponse(_topology(request.app.state))


async def topology_events(request: Request) -> Response:
    """The topology as server-sent events: at once, at each change, and once in a while."""
    return EventStream(changes(partial(_topology, request.app.state)))


def _topology(state: State) -> dict[str, Any]:
    served = state.engine.in_force
    return {
        "deployment_name": state.spec.deployment_name,
        "model_name": None if served is None else served.spec.model_name,
        "spec_hash": None if served is None else served.spec_hash,
        "swap": None if state.engine.swap is None else state.engine.swap.describe(),
        "ready": state.engine.ready,
        **state.engine.topology(),
    }
