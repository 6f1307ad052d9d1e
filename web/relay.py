"""Passing an upstream's answer on to the client, stream or not, and the client's leaving back."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from web.deadline import LAST_SEND_S
from web.disconnect import until_disconnected
from web.errors import error_body
from web.upstream import Answer, Upstream


async def relay(
    request: Request, upstream: Upstream, path: str, document: dict[str, Any]
) -> Response:
    """Ask `upstream` and answer with what it says; its connection closes when the client leaves.

    The request's body must have been read. Raises ApiError and ClientDisconnect.
    """
    answer = await until_disconnected(request.receive, upstream.ask(path, document))
    if answer.rest is None:
        return Response(answer.content, answer.status, answer.headers)
    return RelayedStream(upstream, answer)


class RelayedStream(Response):
    """An event stream in passing. What breaks it off becomes its last event, {"error": ...}."""

    def __init__(self, upstream: Upstream, answer: Answer) -> None:
        super().__init__(status_code=answer.status, headers=answer.headers)
        # Its length is not known before its end.
        del self.headers["content-length"]
        self._upstream, self._answer = upstream, answer
        self.too_late = False

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        assert self._answer.rest is not None
        try:
            await until_disconnected(receive, self._send(send))
        except ClientDisconnect:
            return
        finally:
            await self._answer.rest.aclose()

    async def _send(self, send: Send) -> None:
        assert self._answer.rest is not None
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        await send(_part(self._answer.content))
        last = _part(await self._pass_on(send), more=False)
        await self._answer.rest.aclose()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SEND_S):
                await send(last)

    async def _pass_on(self, send: Send) -> bytes:
        """Everything that still comes; returns the error event to end with, or nothing."""
        assert self._answer.events is not None
        try:
            async with asyncio.timeout_at(self._answer.deadline):
                async for events in self._answer.events:
                    await send(_part(events))
        except TimeoutError:
            self.too_late = True
            body = self._upstream.too_late().body
        except httpx.HTTPError:
            who = f"{self._upstream.name} at {self._upstream.url}"
            message = f"{who} died while it answered; what came until here is cut"
            body = error_body(502, message, code="upstream_died_mid_stream")
        else:
            return b""
        return b"data: " + json.dumps(body).encode() + b"\n\n"


def _part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}
