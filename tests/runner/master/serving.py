"""The master's application on a real socket, in a thread of the test's process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from contract.signed_request import Verifier
from contract.specs import GroupSpec, MasterSpec, RankPart
from runner.master.api.app import Lifespan, create_app
from runner.master.api.served_models import Texts
from runner.master.text.model_text import ModelText
from runner.transport.control import Served
from tests.waiting import wait_for

MODEL = "test/model"
DEPLOYMENT = "test-deployment"


def group_spec(**changes: Any) -> GroupSpec:
    values = {
        "deployment_name": DEPLOYMENT,
        "model_name": MODEL,
        "ranks": (RankPart((0, 30)),),
    }
    return GroupSpec(**{**values, **changes})


class OneText(Texts):
    """The same for whatever is served."""

    def __init__(self, text: ModelText) -> None:
        super().__init__()
        self._text = text

    def of(self, served: Served) -> ModelText:
        return self._text


def master_app(
    engine: Any,
    text: ModelText,
    lifespan: Lifespan | None = None,
    management_key: Callable[[], str] | None = None,
    bind_address: str = "127.0.0.1",
    verifier: Verifier | None = None,
) -> Starlette:
    spec = MasterSpec(DEPLOYMENT, bind_address)
    return create_app(spec, engine, OneText(text), lifespan, management_key, verifier)


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The base URL; the server has ended when the block ends."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive(), what="the server started")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(60)


@contextmanager
def served_engine(
    engine: Any,
    text: ModelText,
    lifespan: Lifespan | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    management_key: Callable[[], str] | None = None,
    bind_address: str = "127.0.0.1",
) -> Iterator[str]:
    """`defaults` go in place of the model's own."""
    if defaults is not None:
        text = replace(text, generation_defaults=defaults)
    app = master_app(engine, text, lifespan, management_key, bind_address)
    with served(app) as url:
        yield url
