"""Headers at admission, comments in silence; what the engine refuses at its door has a status."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest
from openai import OpenAI
from starlette.types import Message

from runner.errors import DeadlineExceeded, EngineFull, RunnerError
from runner.master.api.answers import event_stream
from runner.master.api.completions import GenerateAnswer
from runner.master.engine.engine import Engine
from runner.master.engine.requests import Event, GenerationRequest
from runner.master.engine.tokens import Tokens
from runner.master.metrics import Metrics
from runner.master.text.choice import TextRequest
from runner.master.text.model_text import ModelText
from runner.master.text.streams import TextStream
from runner.sampling_parameters import SamplingParameters
from tests.runner.master.scripted_engine import ScriptedEngine
from tests.runner.master.serving import MODEL, served_engine
from tests.waiting import wait_for
from web.events import COMMENT, DONE

DELAY_S = 0.2
MESSAGES: Any = [{"role": "user", "content": "Hi"}]
CHAT = {"model": MODEL, "messages": MESSAGES, "stream": True, "max_tokens": 3}
STREAMS = [
    ("/generate", {"prompt": "x", "enable_streaming": True, "max_new_tokens": 3}),
    ("/v1/completions", {"model": MODEL, "prompt": "x", "stream": True, "max_tokens": 3}),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "n": 2}),
]


@pytest.fixture
def slow(engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """Each token after DELAY_S; comments four times as often."""
    monkeypatch.setattr("web.events.COMMENT_S", DELAY_S / 4)
    engine.delay_s = DELAY_S
    return engine


@pytest.fixture
def slow_url(slow: ScriptedEngine, demo_text: ModelText) -> Iterator[str]:
    with served_engine(slow, demo_text) as url:
        yield url


@pytest.mark.parametrize(("path", "body"), STREAMS)
def test_a_slow_first_token_and_a_pause_are_bridged(
    slow_url: str, slow: ScriptedEngine, path: str, body: dict[str, Any]
) -> None:
    slow.allowed = 0
    with httpx.stream("POST", slow_url + path, json=body, timeout=30) as response:
        assert response.status_code == 200
        events = events_of(response)
        assert [next(events), next(events)] == [COMMENT] * 2
        slow.allowed = 1
        while next(events) == COMMENT:
            pass
        silent = 0
        while silent < 2:
            silent = silent + 1 if next(events) == COMMENT else 0
        slow.allowed = 3
        assert list(events)[-1] == DONE


def events_of(response: httpx.Response) -> Iterator[bytes]:
    held = b""
    for piece in response.iter_raw():
        held += piece
        while b"\n\n" in held:
            event, _, held = held.partition(b"\n\n")
            yield event + b"\n\n"


def test_the_openai_client_reads_through_comments(slow_url: str, slow: ScriptedEngine) -> None:
    with OpenAI(base_url=f"{slow_url}/v1", api_key="none", max_retries=0) as client:
        whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=3)
        stream = client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_tokens=3,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_a_client_that_leaves_before_the_first_token_frees_its_place(
    slow_url: str, slow: ScriptedEngine
) -> None:
    slow.delay_s = 60
    with httpx.stream("POST", f"{slow_url}/v1/chat/completions", json={**CHAT, "n": 2}) as response:
        lines = response.iter_lines()  # kept: httpx ends the connection with it
        assert next(lines) == COMMENT.decode().strip()
        assert slow.open == 2
    wait_for(lambda: slow.open == 0)


def test_what_was_entered_and_never_read_is_freed(
    engine: ScriptedEngine, demo_text: ModelText
) -> None:
    async def body() -> None:
        generation = GenerationRequest((1, 2), 3, SamplingParameters())
        requests = [TextRequest(generation, index=choice) for choice in range(2)]
        metrics = Metrics(MODEL, engine.statistics)
        text = TextStream(cast("Engine", engine), demo_text, metrics, requests)
        answer = GenerateAnswer(requests)
        response = event_stream(text, answer, 60)
        assert engine.open == 2

        async def fails(_message: Message) -> None:
            raise OSError("the client is gone")

        async def waits() -> Message:
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        with pytest.raises(OSError, match="gone"):
            await response({}, waits, fails)
        assert engine.open == 0

    asyncio.run(body())


@pytest.mark.parametrize("choices", [1, 2, 5])
def test_what_the_engine_refuses_at_its_door_has_its_status(
    slow_url: str, slow: ScriptedEngine, choices: int
) -> None:
    """Also where other choices of the request had a place already."""

    def full(request: GenerationRequest) -> list[int]:
        if request.choice == choices - 1:
            raise EngineFull("no place any more", retry_after_s=3)
        return [1000] * 3

    slow.script = full
    body = {**CHAT, "n": choices, "temperature": 1.0}
    response = httpx.post(f"{slow_url}/v1/chat/completions", json=body)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert slow.open == 0


def test_what_fails_after_admission_is_an_event_with_the_same_body(
    slow_url: str, slow: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = threading.Event()

    def late(_request: GenerationRequest) -> Tokens:
        arrived: asyncio.Queue[Event | RunnerError] = asyncio.Queue()

        async def fail() -> None:
            await asyncio.to_thread(heard.wait, 30)
            arrived.put_nowait(DeadlineExceeded("600 s have passed"))

        failing = asyncio.create_task(fail())

        def leave() -> None:
            failing.cancel()

        return Tokens(arrived, leave)

    monkeypatch.setattr(slow, "generate", late)
    for path, body in STREAMS:
        heard.clear()
        with httpx.stream("POST", slow_url + path, json=body, timeout=30) as response:
            events = events_of(response)
            assert (response.status_code, next(events)) == (200, COMMENT)
            heard.set()
            *comments, last = events
        error = json.loads(last.removeprefix(b"data: "))["error"]
        assert error["code"] == "deadline_exceeded"
        assert set(comments) <= {COMMENT}
