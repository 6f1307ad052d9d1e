"""Prompts and answers in logs: a log that is read by more people than the conversations are."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from runner.errors import NotServing, RequestEndsTheGroup, RunnerError
from runner.master.text.model_text import ModelText
from tests.advisories.running_tiers import BLOCK, RunningTiers, running_tiers
from tests.runner.master.api.test_prompts import Stack
from tests.runner.master.scripted_engine import ScriptedEngine
from tests.runner.master.serving import master_app, served
from tests.waiting import wait_for
from web import carried_request
from web.logs import JsonLines

SECRET = "heliotrope-marmalade"
# Kept quiet by web.logs.configure_logging at every level: they are not ours.
QUIET = ("httpx", "httpcore", "uvicorn.access", "uvicorn.error", "asyncio")
USER = {"role": "user", "content": f"Repeat: {SECRET}"}
CHAT: dict[str, Any] = {"model": BLOCK, "messages": [USER], "max_tokens": 4}
COMPLETION: dict[str, Any] = {"model": BLOCK, "prompt": SECRET, "max_tokens": 4}
BAD: list[dict[str, Any]] = [
    {"temperature": 99},
    {"tools": [SECRET]},
    {SECRET: 1},
    {"stop": [SECRET * 100]},
    {"user": {"name": SECRET}, "logit_bias": {SECRET: 1}},
    {"messages": [USER, {"role": SECRET * 9, "content": [SECRET]}]},
    {"messages": [{"role": "user", "content": SECRET * 5000}]},
    {"prompt": [SECRET, 5]},
    {"prompt": SECRET * 5000},
]


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """All that this process logs, at the level that tells most, as its lines would be written."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines("test"))
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in ("", *QUIET)}
    for name in levels:
        logging.getLogger(name).setLevel(logging.WARNING if name else logging.DEBUG)
    root.addHandler(handler)
    yield written
    root.removeHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def tiers(
    log: io.StringIO, engine: ScriptedEngine, demo_text: ModelText, tmp_path: Path
) -> Iterator[RunningTiers]:
    master = master_app(engine, demo_text)
    with running_tiers(master, tmp_path) as running:
        yield running


def infer(number: int, **data: Any) -> dict[str, Any]:
    envelope = {"model": BLOCK, "session_id": "session", "seq_no": number}
    return envelope | {"data": {"message": SECRET} | data}


def ask(url: str, path: str, body: dict[str, Any] | bytes) -> httpx.Response:
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    return httpx.post(url + path, timeout=30, **content)  # type: ignore[arg-type]


def ask_everything(tiers: RunningTiers) -> list[int]:
    """Requests of every kind at every tier, good and bad; their statuses."""
    broken = b'{"prompt": "' + SECRET.encode() + b'"'
    statuses = []
    for url in (tiers.inference_server, tiers.proxy_block, tiers.master):
        for path, good in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)):
            body = good if url != tiers.master else good | {"model": "test/model"}
            for change in ({}, {"stream": True}, *BAD):
                statuses.append(ask(url, path, body | change).status_code)
            statuses.append(ask(url, path, broken).status_code)
            statuses.append(ask(url, f"{path}?prompt={SECRET}", body | {"n": 0}).status_code)
    datas: list[dict[str, Any]] = [{}, {"mode": SECRET}, {SECRET: 1}, {"system_message": [SECRET]}]
    for number, data in enumerate(datas):
        statuses.append(ask(tiers.inference_server, "/v1/infer", infer(number, **data)).status_code)
    statuses.append(ask(tiers.inference_server, "/v1/infer", infer(0)).status_code)
    statuses.append(ask(tiers.master, "/generate", {"prompt": SECRET}).status_code)
    statuses.append(ask(tiers.master, "/set_config", {"stop": SECRET * 100}).status_code)
    statuses.append(ask(tiers.proxy_block, "/management", {"action": SECRET}).status_code)
    return statuses


def test_what_was_said_is_in_no_line_of_any_tier(tiers: RunningTiers, log: io.StringIO) -> None:
    """Requests logged with their text: at admission, in the access log, or in full where a body is
    refused and the complaint shows it."""
    statuses = ask_everything(tiers)
    assert {200, 400} <= set(statuses)
    assert log.getvalue().count('"message": "request"') >= len(statuses)
    assert SECRET not in log.getvalue()


@pytest.mark.parametrize(
    "failure",
    [
        NotServing("the group is gone"),
        RequestEndsTheGroup("it was lost each time"),
        RunnerError("something"),
        RuntimeError("a defect of ours"),
    ],
)
def test_nor_where_it_fails(
    tiers: RunningTiers,
    log: io.StringIO,
    engine: ScriptedEngine,
    failure: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same in what is logged of a failure: the request beside it, or a trace with values."""
    monkeypatch.setattr(carried_request, "PATIENCE_S", 0.1)  # for a master that comes back
    engine.failure = failure
    for url in (tiers.master, tiers.proxy_block, tiers.inference_server):
        for stream in (False, True):
            for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)):
                model = "test/model" if url == tiers.master else BLOCK
                answer = ask(url, path, body | {"model": model, "stream": stream})
                assert answer.status_code >= 500 or "error" in answer.text
    assert SECRET not in log.getvalue()


def test_nor_where_a_request_ends_the_group(log: io.StringIO, demo_text: ModelText) -> None:
    """The same of a request that is suspected of bringing the engine down, and is dumped for it."""
    stack = Stack()
    stack.group.deadly = {demo_text.encode_prompt(SECRET)[-1]}
    with served(master_app(stack.engine, demo_text, stack.lifespan)) as url:
        wait_for(lambda: stack.engine.ready)
        answer = ask(url, "/generate", {"prompt": SECRET, "max_new_tokens": 5})
    assert answer.json()["error"]["code"] == "request_ends_the_group"
    assert "ends the group" in log.getvalue()
    assert SECRET not in log.getvalue()
    # Nor as the ids that stand for it.
    assert str(list(demo_text.encode_prompt(SECRET)))[1:-1] not in log.getvalue()
