"""Server-sent events that have no end: what is drawn while it changes."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from web.disconnect import until_disconnected

# A source says something at least this often, so that who hears nothing for longer may give it up.
SILENCE_LIMIT_S = 10.0


def event(document: dict[str, Any]) -> bytes:
    """One event, its document as JSON."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


class LiveEvents(Response):
    """Sends whole events until the client leaves, which closes `events`."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        # Its length is not known before its end.
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnected(receive, self._send(send))
        except ClientDisconnect:
            return
        finally:
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        # What fails before the first event gets a status of its own.
        piece: bytes | None = await anext(self._events, None)
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while piece is not None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = await anext(self._events, None)
        await send({"type": "http.response.body", "body": b""})
