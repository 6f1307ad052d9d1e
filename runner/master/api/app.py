"""The master's HTTP application: its routes, and what surrounds them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from starlette.applications import Starlette
from starlette.routing import Route

from runner.master.api import chat as chat_api
from runner.master.api import completions as completions_api
from runner.master.api import generate as generate_api
from runner.master.api import state as state_api
from runner.master.api.errors import install_failure_handler
from runner.master.api.prompts import MasterService
from web.errors import install_error_handlers

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def create_app(service: MasterService, lifespan: Lifespan | None = None) -> Starlette:
    """`lifespan` starts and ends what lives beside the API, on the same event loop."""
    app = Starlette(
        routes=[
            Route("/generate", generate_api.generate, methods=["POST"]),
            Route("/set_config", generate_api.set_config, methods=["POST"]),
            Route("/set_config", generate_api.get_config, methods=["GET"]),
            Route("/v1/completions", completions_api.completions, methods=["POST"]),
            Route("/v1/chat/completions", chat_api.chat_completions, methods=["POST"]),
            Route("/v1/chat/", chat_api.chat_completions, methods=["POST"]),
            Route("/v1/models", state_api.models, methods=["GET"]),
            Route("/v1/models/{name:path}", state_api.model, methods=["GET"]),
            Route("/livez", state_api.livez, methods=["GET"]),
            Route("/readyz", state_api.readyz, methods=["GET"]),
            Route("/metrics", state_api.metrics, methods=["GET"]),
            Route("/topology", state_api.topology, methods=["GET"]),
            Route("/topology/events", state_api.topology_events, methods=["GET"]),
        ],
        lifespan=lifespan,
    )
    app.state.service = service
    install_error_handlers(app)
    install_failure_handler(app)
    return app
