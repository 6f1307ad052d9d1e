"""Master, proxy block and inference server one behind the other, in threads of the test's process.

Around each application is what web.serve puts there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.types import ASGIApp

from contract.specs import BlockSpec, InferenceServerSpec, ProxySpec, SessionsSpec
from inference_server.api import build_app as build_server
from proxy_block.api import build_app as build_block
from proxy_block.stores.sqlite import SqliteStore
from tests.runner.master.serving import DEPLOYMENT, served
from web.deadline import DeadlineMiddleware
from web.middleware import AccessLog
from web.request_id import RequestIdMiddleware

BLOCK = "block-1"


@dataclass(frozen=True)
class RunningTiers:
    """Their URLs."""

    master: str
    proxy_block: str
    inference_server: str


@contextmanager
def running_tiers(master: Starlette, folder: Path) -> Iterator[RunningTiers]:
    """`master` is its application; `folder` gets the sessions."""
    with ExitStack() as ending:
        master_url = ending.enter_context(served(_as_served(master)))
        sessions = SessionsSpec(str(folder / "sessions.sqlite3"))
        spec = ProxySpec(BLOCK, DEPLOYMENT, master_url, sessions=sessions, request_deadline_s=20)
        block = build_block(spec, {}, SqliteStore(sessions))
        block_url = ending.enter_context(served(_as_served(block)))
        blocks = (BlockSpec(BLOCK, block_url),)
        server = build_server(InferenceServerSpec(DEPLOYMENT, blocks, request_deadline_s=20))
        server_url = ending.enter_context(served(_as_served(server)))
        yield RunningTiers(master_url, block_url, server_url)


def _as_served(app: ASGIApp) -> ASGIApp:
    return RequestIdMiddleware(AccessLog(DeadlineMiddleware(app), ()))
