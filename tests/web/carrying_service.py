"""A small HTTP service that speaks contract/carry.py, and breaks off where it is told to.

Its tokens follow from seed, choice and position alone, so that an answer which goes on rightly is
byte for byte the unbroken one. Each token is one event, the first of a choice two.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from contract.carry import ASKS_FOR_IDS, FIELD, HEADER, Advance, Beginning, Carry, line, parse_field
from web.events import DONE, event

SEED, COMMIT = 7, "c0ffee"
# What is said in place of an answer, or None.
Instead: TypeAlias = Callable[[int, dict[str, Any]], "tuple[int, dict[str, Any]] | bytes | None"]


class CarryingService:
    """`cuts` are the byte positions, HTTP's head counted, at which each answer in turn breaks off;
    those after the last one come whole. `chunked` false ends an answer by closing, so that a cut
    looks like an end. With `pause_s` between its pieces an answer waits before the one that
    `holds_at` says, for as long as it does."""

    def __init__(self, *, choices: int = 2, tokens: int = 3, chunked: bool = True) -> None:
        self.choices, self.tokens, self.chunked = choices, tokens, chunked
        self.cuts: list[int] = []
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.sizes: list[int] = []
        self.ready = True
        self.knows_ids = True
        self.instead: Instead = lambda _number, _document: None
        self.hangs_after: int | None = None
        self.pause_s = 0.0
        self.holds_at: int | None = None
        self.holding = 0
        self.left = 0

    async def __aenter__(self) -> CarryingService:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.split("\r\n")
            headers = dict(one.lower().split(": ", 1) for one in lines if one)
            if first.startswith("GET"):
                status = 200 if self.ready else 503
                writer.write(_whole(status, {"reason": "told to be", "data": []}))
                return
            content = await reader.readexactly(int(headers["content-length"]))
            await self._answer(reader, writer, headers, json.loads(content))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        headers: dict[str, str],
        document: dict[str, Any],
    ) -> None:
        self.asked.append(document)
        self.headers.append(headers)
        instead = self.instead(len(self.asked), document)
        if isinstance(instead, tuple):
            writer.write(_whole(*instead))
            return
        pieces = [instead] if instead is not None else self._pieces(headers, document)
        if self.pause_s:
            for place, piece in enumerate(_stream(pieces, chunked=self.chunked)):
                if place == self.holds_at:
                    await self._hold()
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(self.pause_s)
            return
        answer = b"".join(_stream(pieces, chunked=self.chunked))
        self.sizes.append(len(answer))
        if self.hangs_after is not None:
            writer.write(answer[: self.hangs_after])
            await reader.read()
            self.left += 1
        else:
            writer.write(answer[: self.cuts.pop(0)] if self.cuts else answer)

    async def _hold(self) -> None:
        self.holding += 1
        while self.holds_at is not None:  # noqa: ASYNC110 (of a test in another thread)
            await asyncio.sleep(0.01)
        self.holding -= 1

    def told(self, document: dict[str, Any] | None = None) -> list[bytes]:
        """The pieces of an answer to who asks for ids."""
        return list(self._pieces({HEADER.lower(): ASKS_FOR_IDS}, document or {"stream": True}))

    def _pieces(self, headers: dict[str, str], document: dict[str, Any]) -> Iterator[bytes]:
        beginning = Beginning("answer-1", 1_790_000_000, SEED, COMMIT, "digest", self.choices)
        carry = (
            parse_field(document[FIELD])
            if FIELD in document
            else Carry(beginning, ((),) * self.choices)
        )
        assert carry.beginning == beginning
        for choice, ids in enumerate(carry.ids):
            assert list(ids) == [token_id(choice, place) for place in range(len(ids))]
        with_lines = self.knows_ids and headers.get(HEADER.lower()) == ASKS_FOR_IDS
        stream = document.get("stream") is True
        if with_lines:
            yield line(beginning)
        for place in range(self.tokens):
            for choice in range(self.choices):
                if place < len(carry.ids[choice]):
                    continue
                if stream:
                    yield token_events(choice, place)
                if with_lines:
                    yield line(Advance(choice, (token_id(choice, place),)))
        yield event({"choices": [], "usage": self.usage} if stream else self.body)
        yield DONE

    @property
    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": 5, "completion_tokens": self.choices * self.tokens}

    @property
    def body(self) -> dict[str, Any]:
        """An answer that is asked for whole."""
        content = "".join(map(str, range(self.tokens)))
        choices = [
            {"index": choice, "message": {"role": "assistant", "content": content}}
            for choice in range(self.choices)
        ]
        return {"id": "answer-1", "choices": choices, "usage": self.usage}


@contextmanager
def in_a_thread(service: CarryingService) -> Iterator[CarryingService]:
    """For clients that are processes."""
    begun, ending = threading.Event(), []

    async def serve() -> None:
        async with service:
            ended = asyncio.Event()
            ending.append((asyncio.get_running_loop(), ended))
            begun.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert begun.wait(60)
    try:
        yield service
    finally:
        [(loop, ended)] = ending
        loop.call_soon_threadsafe(ended.set)
        thread.join(60)


def token_id(choice: int, place: int) -> int:
    return SEED + 100 * choice + place


def token_events(choice: int, place: int) -> bytes:
    role = event({"choices": [{"index": choice, "delta": {"role": "assistant", "content": ""}}]})
    delta = {"content": f"{place} of {choice}"}
    return role * (place == 0) + event({"choices": [{"index": choice, "delta": delta}]})


def _stream(pieces: Iterator[bytes] | list[bytes], *, chunked: bool) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    yield b"transfer-encoding: chunked\r\n\r\n" if chunked else b"connection: close\r\n\r\n"
    for piece in pieces:
        yield b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
    yield b"0\r\n\r\n" if chunked else b""


def _whole(status: int, document: dict[str, Any]) -> bytes:
    content = json.dumps(document).encode()
    head = f"HTTP/1.1 {status} x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content
