"""The one streaming answer: server-sent events of our own, passed on, or without an end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from web.disconnect import until_disconnected
from web.errors import ApiError

# While no event comes, a comment goes out this often, in seconds: what stands between client and
# server cuts a connection that is idle, often after a minute. No reader of events sees a comment.
COMMENT_S = 10.0
COMMENT = b": keep-alive\n\n"
# The first item of a source whose request is admitted and that has nothing to say yet.
ADMITTED = b""
# Past a request's deadline nobody waits longer for a client that does not read.
LAST_SEND_S = 5.0
DONE = b"data: [DONE]\n\n"
OWN_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
# json.dumps with arguments makes an encoder at each call.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))

# Who watches is told of changes no oftener, and hears of what stands still no less often.
_CHANGE_S, _REPEAT_S = 0.25, 3.0

Events: TypeAlias = AsyncGenerator[bytes, None]
Ended: TypeAlias = Callable[[Exception | None], None]


def event(document: Mapping[str, Any]) -> bytes:
    """One event, its document as JSON."""
    return f"data: {_ENCODER.encode(document)}\n\n".encode()


async def changes(describe: Callable[[], Mapping[str, Any]]) -> Events:
    """A document as events without end: at once, at each change, and once in a while."""
    told, told_at = b"", 0.0
    while True:
        found, now = event(describe()), time.monotonic()
        if found != told or now - told_at > _REPEAT_S:
            told, told_at = found, now
            yield found
        await asyncio.sleep(_CHANGE_S)


async def whole_events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A stream cut at the ends of events, so that what breaks off never leaves half of one."""
    held = b""
    async for piece in pieces:
        held += piece
        end = held.rfind(b"\n\n") + 2
        if end >= 2:
            yield held[:end]
            held = held[end:]
    if held:
        yield held


class EventStream(Response):
    """Sends whole events as they come, until their source ends or the client leaves.

    The headers go out with the first item of `events`, which may be ADMITTED. What fails before it
    gets a status of its own. An ApiError after it is the last event, {"error": ...}. While nothing
    comes, COMMENT goes out every COMMENT_S.

    At `deadline`, in the event loop's time, the source is given up, whether or not the client
    reads; then `too_late` is the last event, or nothing more is said. For a last event a client has
    LAST_SEND_S more.

    `close` is called in every case, even twice; left out, it is that of `events`, which is for a
    generator that holds nothing before it is asked. Then `ended` is told what broke the stream
    off, None where it ended by itself or the client left.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: Events,
        *,
        close: Callable[[], Awaitable[None]] | None = None,
        status_code: int = 200,
        headers: Mapping[str, str] = OWN_HEADERS,
        deadline: float | None = None,
        too_late: ApiError | None = None,
        ended: Ended | None = None,
    ) -> None:
        super().__init__(status_code=status_code, headers=headers)
        # Its length is not known before its end.
        del self.headers["content-length"]
        self._events, self._close, self._ended = events, close or events.aclose, ended
        self._deadline, self._too_late = deadline, too_late
        self._begun = False
        self._error: Exception | None = None

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnected(receive, self._send(send))
        except ClientDisconnect:
            if not self._begun:
                raise
        finally:
            try:
                await self._close()
            finally:
                if self._ended is not None:
                    self._ended(self._error)

    async def _send(self, send: Send) -> None:
        first = await anext(self._events, ADMITTED)
        self._begun = True
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        last: bytes | None = b""
        line = _Line(send)
        try:
            async with asyncio.timeout_at(self._deadline), line.kept_busy():
                await line.send(first)
                async for events in self._events:
                    await line.send(events)
        except (ApiError, TimeoutError) as error:
            self._error = error
            told = error if isinstance(error, ApiError) else self._too_late
            last = None if told is None else event(told.body)
        # What the source holds is free before a slow client has taken the end.
        await self._close()
        if last is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._last_send_by()):
                    await send(_part(last, more=False))

    def _last_send_by(self) -> float | None:
        if self._deadline is None:
            return None
        return max(self._deadline, asyncio.get_running_loop().time() + LAST_SEND_S)


class _Line:
    """What goes to the client: events, and comments while there are none. One at a time."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._sending = asyncio.Lock()
        self._sent_at = asyncio.get_running_loop().time()

    async def send(self, events: bytes) -> None:
        if not events:
            return
        async with self._sending:
            await self._send(_part(events))
            self._sent_at = asyncio.get_running_loop().time()

    @contextlib.asynccontextmanager
    async def kept_busy(self) -> AsyncIterator[None]:
        commenting = asyncio.create_task(self._comment())
        try:
            yield
        finally:
            commenting.cancel()
            await asyncio.gather(commenting, return_exceptions=True)

    async def _comment(self) -> None:
        left = COMMENT_S
        while True:
            await asyncio.sleep(left)
            left = self._sent_at + COMMENT_S - asyncio.get_running_loop().time()
            if left <= 0:
                left = COMMENT_S
                # Who does not read what is on its way has no use for more.
                if not self._sending.locked():
                    await self.send(COMMENT)


def _part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
