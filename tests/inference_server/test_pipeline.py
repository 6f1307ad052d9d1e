"""GET /v1/events: one connection to the block, whoever watches."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contract.specs import BlockSpec, InferenceServerSpec, ProxySpec, SessionsSpec
from tests.waiting import free_ports, wait_for
from tests.web.tier_process import TierProcess
from web.events import Events, EventStream, event

BLOCK = "block-1"


class SmallMaster:
    """Serves /topology/events; `epoch` is what it tells next, `watchers` who is connected."""

    def __init__(self) -> None:
        self.epoch = 1
        self.watchers = self.connections = 0
        [port] = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        app = Starlette(routes=[Route("/topology/events", self._events)])
        self._server = uvicorn.Server(
            uvicorn.Config(app, port=port, log_level="critical", timeout_graceful_shutdown=0)
        )
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_for(lambda: self._server.started)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)

    async def _events(self, _: Request) -> Response:
        return EventStream(self._tell())

    async def _tell(self) -> Events:
        self.watchers += 1
        self.connections += 1
        told = 0
        try:
            while True:
                if told != self.epoch:
                    told = self.epoch
                    yield event({"epoch": told})
                await asyncio.sleep(0.02)
        finally:
            self.watchers -= 1


@pytest.fixture
def master() -> Iterator[SmallMaster]:
    master = SmallMaster()
    yield master
    master.stop()


@pytest.fixture
def server(master: SmallMaster, tmp_path: Path) -> Iterator[TierProcess]:
    sessions = SessionsSpec(str(tmp_path / "sessions.sqlite3"))
    proxy_spec = ProxySpec(BLOCK, "small", master.url, sessions=sessions)
    with ExitStack() as ending:
        proxy = ending.enter_context(TierProcess("proxy_block", proxy_spec, tmp_path))
        spec = InferenceServerSpec("small", (BlockSpec(BLOCK, proxy.url),))
        yield ending.enter_context(TierProcess("inference_server", spec, tmp_path))


class Watcher:
    """One reader of /v1/events."""

    def __init__(self, server: TierProcess, ending: ExitStack) -> None:
        stream = httpx.stream("GET", f"{server.url}/v1/events?model={BLOCK}")
        self.response = ending.enter_context(stream)
        self._lines = self.response.iter_lines()

    def next(self) -> dict[str, Any]:
        line = next(line for line in self._lines if line.startswith("data:"))
        document: dict[str, Any] = json.loads(line[5:])
        return document


def test_watchers_share_one_connection_and_see_each_change(
    server: TierProcess, master: SmallMaster
) -> None:
    with ExitStack() as ending:
        watchers = [Watcher(server, ending) for _ in range(20)]
        first = {"block_id": BLOCK, "topology": {"epoch": 1}}
        assert [watcher.next() for watcher in watchers] == [first] * 20
        assert master.connections == 1
        assert watchers[0].response.headers["content-type"].startswith("text/event-stream")
        master.epoch = 2
        assert {watcher.next()["topology"]["epoch"] for watcher in watchers} == {2}
    wait_for(lambda: master.watchers == 0, what="nobody watches the master any more")


def test_a_watcher_that_comes_later_is_told_at_once(
    server: TierProcess, master: SmallMaster
) -> None:
    with ExitStack() as ending:
        early, late = Watcher(server, ending), Watcher(server, ending)
        assert early.next() == late.next()
        assert Watcher(server, ending).next()["topology"] == {"epoch": 1}
        assert master.connections == 1


def test_a_master_that_goes_is_said(server: TierProcess, master: SmallMaster) -> None:
    with ExitStack() as ending:
        watcher = Watcher(server, ending)
        watcher.next()
        master.stop()
        assert "pipeline" in watcher.next()["reason"]


@pytest.mark.parametrize(("query", "status"), [("", 400), ("?model=", 400), ("?model=other", 404)])
def test_a_wrong_name_is_refused(server: TierProcess, query: str, status: int) -> None:
    answer = httpx.get(f"{server.url}/v1/events{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, "model")


def test_the_page_runs_nothing_of_others(server: TierProcess) -> None:
    page = httpx.get(server.url)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "://" not in page.text
    for path in ("main.js", "page.css", "mark.svg"):
        answer = httpx.get(f"{server.url}/page/{path}")
        assert answer.is_success
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = httpx.get(
            f"{server.url}/page/{path}", headers={"If-None-Match": answer.headers["etag"]}
        )
        assert (again.status_code, again.content) == (304, b"")


def test_watching_does_not_hold_up_the_end(server: TierProcess) -> None:
    with ExitStack() as ending:
        watcher = Watcher(server, ending)
        watcher.next()
        server.terminate()
        assert server.process.wait(60) == 0
