"""Server-sent events: one JSON document per event, as OpenAI's clients read them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runner.master.api.errors import failure_body
from web.deadline import LAST_SEND_S, remaining_s
from web.disconnect import until_disconnected

Events = AsyncGenerator[dict[str, Any], None]
# json.dumps with arguments makes an encoder at each call.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_DONE = b"data: [DONE]\n\n"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class EventStream(Response):
    """Sends `first`, then the rest of `events`, then `[DONE]`.

    An error after the beginning is an event of its own, {"error": ...}, and the stream ends
    without `[DONE]`. A client that leaves closes `events`, one that has not read all of it
    `limit_s` seconds from now is given up.
    """

    media_type = "text/event-stream"

    def __init__(self, first: dict[str, Any], events: Events, limit_s: float) -> None:
        super().__init__(headers=_HEADERS)
        # Its length is not known before its end.
        del self.headers["content-length"]
        self._first, self._events, self._limit_s = first, events, limit_s

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limit_s):
                    await until_disconnected(receive, self._send(send))
        except ClientDisconnect:
            return
        finally:
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send(_body(self._first))
        try:
            async for event in self._events:
                await send(_body(event))
        except Exception as error:  # the status line is long gone
            await send(_body(failure_body(error), more=False))
            return
        await send({"type": "http.response.body", "body": _DONE})


def _body(document: dict[str, Any], *, more: bool = True) -> dict[str, Any]:
    text = _ENCODER.encode(document)
    return {"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": more}


async def event_stream(request: Request, events: Events, deadline_s: float) -> EventStream:
    """The answer, once its first event exists: what is refused until then gets a status of its own.

    Raises what generation raises, within `deadline_s` or the client's own, and ClientDisconnect.
    """
    try:
        first = await until_disconnected(request.receive, anext(events))
    except BaseException:
        await events.aclose()
        raise
    return EventStream(first, events, remaining_s(deadline_s) + LAST_SEND_S)
