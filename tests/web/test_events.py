"""The one streaming answer: its end in every case, and what its source is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from tests.virtual_time import run_in_virtual_time
from web.errors import ApiError
from web.events import ADMITTED, COMMENT, Events, EventStream, event, whole_events

FAILURE = ApiError(502, "broke off", code="upstream_died_mid_stream")
TOO_LATE = ApiError(504, "too late", code="deadline_exceeded")


class Source:
    """Tells `count` events, fails after `fails_after`, then hangs if `hangs`; counts its ends."""

    def __init__(
        self, count: int = 3, fails_after: int | None = None, *, hangs: bool = False
    ) -> None:
        self._count, self._fails_after, self._hangs = count, fails_after, hangs
        self.ended = 0
        self.closes = 0

    async def events(self) -> Events:
        try:
            for number in range(self._count):
                if number == self._fails_after:
                    raise FAILURE
                yield event({"n": number})
                await asyncio.sleep(0)
            if self._hangs:
                await asyncio.sleep(60)
        finally:
            self.ended += 1

    async def close(self) -> None:
        self.closes += 1


class Client:
    """Reads `reads` messages of the answer and then no more; leaves when `left` is set."""

    def __init__(self, reads: int = 1000, *, leaves_after: int = 1000) -> None:
        self.messages: list[Message] = []
        self._reads, self._leaves_after = reads, leaves_after
        self._left = asyncio.Event()

    async def receive(self) -> Message:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if len(self.messages) >= self._reads:
            await asyncio.sleep(60)
        self.messages.append(message)
        if len(self.messages) >= self._leaves_after:
            self._left.set()

    def leave(self) -> None:
        self._left.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def complete(self) -> bool:
        return self.messages[-1].get("more_body") is False


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await body()

    run_in_virtual_time(bounded)


def now() -> float:
    return asyncio.get_running_loop().time()


async def answer(source: Source, client: Client, **arguments: Any) -> list[Exception | None]:
    """What `ended` was told; the source has ended when this returns."""
    told: list[Exception | None] = []
    stream = EventStream(source.events(), ended=told.append, **arguments)
    try:
        await stream({}, client.receive, client.send)
    finally:
        assert len(told) == 1
        assert source.ended <= 1
    return told


def deadline(seconds: float) -> float:
    return now() + seconds


def test_events_go_out_as_they_are_and_the_source_ends() -> None:
    async def body() -> None:
        source, client = Source(), Client()
        assert await answer(source, client) == [None]
        assert client.body == b'data: {"n":0}\n\ndata: {"n":1}\n\ndata: {"n":2}\n\n'
        assert client.complete
        assert source.ended == 1
        headers = dict(client.messages[0]["headers"])
        assert headers[b"content-type"].startswith(b"text/event-stream")
        assert headers[b"cache-control"] == b"no-store"
        assert b"content-length" not in headers

    run(body)


def test_a_source_without_events_is_an_empty_stream() -> None:
    async def body() -> None:
        client = Client()
        await answer(Source(0), client)
        assert (client.messages[0]["status"], client.body, client.complete) == (200, b"", True)

    run(body)


@pytest.mark.parametrize("hangs", [True, False])
def test_a_client_that_leaves_ends_the_source(hangs: bool) -> None:
    async def body() -> None:
        source, client = Source(2 if hangs else 10**9, hangs=hangs), Client(leaves_after=3)
        assert await answer(source, client) == [None]
        assert source.ended == 1
        assert not client.complete

    run(body)


def test_a_client_that_leaves_before_the_first_event_is_known_to_have_left() -> None:
    async def body() -> None:
        source, client = Source(0, hangs=True), Client()
        asyncio.get_running_loop().call_later(0.05, client.leave)
        with pytest.raises(ClientDisconnect):
            await answer(source, client)
        assert source.ended == 1
        assert not client.messages

    run(body)


def test_what_fails_before_the_first_event_gets_a_status_of_its_own() -> None:
    async def body() -> None:
        source, client = Source(fails_after=0), Client()
        with pytest.raises(ApiError, match="broke off"):
            await answer(source, client)
        assert not client.messages

    run(body)


def test_what_fails_later_is_the_last_event() -> None:
    async def body() -> None:
        source, client = Source(fails_after=1), Client()
        assert await answer(source, client) == [FAILURE]
        assert client.body == event({"n": 0}) + event(FAILURE.body)
        assert client.complete

    run(body)


def test_a_source_that_hangs_is_given_up_at_the_deadline() -> None:
    async def body() -> None:
        source, client = Source(1, hangs=True), Client()
        [error] = await answer(source, client, deadline=deadline(0.2), too_late=TOO_LATE)
        assert isinstance(error, TimeoutError)
        assert source.ended == 1
        assert client.body == event({"n": 0}) + event(TOO_LATE.body)
        assert client.complete

    run(body)


def test_where_nobody_says_so_a_late_stream_breaks_off() -> None:
    async def body() -> None:
        client = Client()
        await answer(Source(1, hangs=True), client, deadline=deadline(0.2))
        assert client.body == event({"n": 0})
        assert not client.complete

    run(body)


def test_a_client_that_does_not_read_is_held_until_a_little_past_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("web.events.LAST_SEND_S", 0.3)

    async def body() -> None:
        source, client = Source(10**9), Client(reads=3)
        began = now()
        closed_at: list[float] = []

        async def close() -> None:
            closed_at.append(now() - began)

        limits = {"deadline": deadline(0.2), "too_late": TOO_LATE, "close": close}
        [error] = await answer(source, client, **limits)
        assert isinstance(error, TimeoutError)
        assert now() - began == pytest.approx(0.5)
        assert closed_at[0] == pytest.approx(0.2)
        assert len(client.messages) == 3

    run(body)


def test_who_reads_slowly_has_until_the_deadline_for_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("web.events.LAST_SEND_S", 0.01)

    async def body() -> None:
        source, client = Source(1), Client()
        send = client.send

        async def send_slowly(message: Message) -> None:
            await asyncio.sleep(0.1)
            await send(message)

        client.send = send_slowly  # type: ignore[method-assign]
        assert await answer(source, client, deadline=deadline(5)) == [None]
        assert client.complete

    run(body)


def test_a_server_that_ends_closes_what_the_source_holds() -> None:
    async def body() -> None:
        source, client = Source(), Client()
        stream = EventStream(source.events(), close=source.close)
        task = asyncio.create_task(stream({}, client.receive, client.send))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert source.closes

    run(body)


def test_a_stream_is_cut_at_the_ends_of_events() -> None:
    async def pieces() -> Events:
        for piece in (b"data: 1\n\ndata:", b" 2\n", b"\n", b"data: 3\n\ndata: 4\n\nda", b"ta: 5"):
            yield piece

    async def body() -> None:
        found = [events async for events in whole_events(pieces())]
        assert found == [
            b"data: 1\n\n",
            b"data: 2\n\n",
            b"data: 3\n\ndata: 4\n\n",
            b"data: 5",
        ]

    run(body)


async def silent(*items: bytes | ApiError, seconds: float = 0.5) -> Events:
    """ADMITTED, and `seconds` before each of `items`."""
    yield ADMITTED
    for item in items:
        await asyncio.sleep(seconds)
        if isinstance(item, ApiError):
            raise item
        yield item


def test_headers_go_out_at_admission_and_comments_while_nothing_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("web.events.COMMENT_S", 0.2)

    async def body() -> None:
        client = Client()
        answering = asyncio.create_task(
            EventStream(silent(b"data: 1\n\n", b"data: 2\n\n"))({}, client.receive, client.send)
        )
        await asyncio.sleep(0.05)
        assert [message["type"] for message in client.messages] == ["http.response.start"]
        await answering
        assert client.body == (COMMENT * 2 + b"data: 1\n\n" + COMMENT * 2 + b"data: 2\n\n")
        assert client.complete

    run(body)


def test_events_that_come_in_time_leave_no_room_for_comments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("web.events.COMMENT_S", 0.6)

    async def body() -> None:
        client = Client()
        events = [b": another's\n\n"] * 6
        await EventStream(silent(*events, seconds=0.1))({}, client.receive, client.send)
        assert client.body == b"".join(events)

    run(body)


def test_what_fails_after_admission_is_an_event() -> None:
    async def body() -> None:
        client = Client()
        stream = EventStream(silent(FAILURE, seconds=0))
        await stream({}, client.receive, client.send)
        assert client.messages[0]["status"] == 200
        assert (client.body, client.complete) == (event(FAILURE.body), True)

    run(body)


@pytest.mark.parametrize("reads", [1, 2])
def test_a_client_that_reads_no_comment_is_given_up_like_any_other(
    monkeypatch: pytest.MonkeyPatch, reads: int
) -> None:
    monkeypatch.setattr("web.events.COMMENT_S", 0.05)
    monkeypatch.setattr("web.events.LAST_SEND_S", 0.2)

    async def body() -> None:
        client, began = Client(reads=reads), now()
        source = silent(b"data: 1\n\n", seconds=60)
        stream = EventStream(source, deadline=deadline(0.3), too_late=TOO_LATE)
        await stream({}, client.receive, client.send)
        assert now() - began == pytest.approx(0.5)
        assert client.body == COMMENT * (reads - 1)

    run(body)


def test_a_client_that_leaves_a_silent_stream_ends_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("web.events.COMMENT_S", 0.05)

    async def body() -> None:
        client, source = Client(), silent(b"data: 1\n\n", seconds=60)
        before = asyncio.all_tasks()
        asyncio.get_running_loop().call_later(0.2, client.leave)
        await EventStream(source)({}, client.receive, client.send)
        assert client.body.startswith(COMMENT)
        assert asyncio.all_tasks() == before

    run(body)
