"""One log line for each request, when it has been answered: never its body or its query."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_PATH = 200
log = logging.getLogger("service.access")


class AccessLog:
    """Pure ASGI; `quiet` are the paths that are asked for all the time and not worth a line.

    `status` is null where nothing was sent: the client left first.
    """

    def __init__(self, app: ASGIApp, quiet: Collection[str]) -> None:
        self._app, self._quiet = app, frozenset(quiet)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._quiet:
            await self._app(scope, receive, send)
            return
        status: int | None = None
        began = time.monotonic()

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            fields = {
                "method": scope["method"],
                "path": scope["path"][:MAX_PATH],
                "status": status,
                "duration_ms": round((time.monotonic() - began) * 1e3, 1),
            }
            log.info("request", extra={"fields": fields})
