"""The X-Request-Timeout header: the seconds that a client still waits, carried through the tiers.

A number of seconds rather than a time of day, so that clocks need not agree. It shortens a tier's
own request deadline and never lengthens it.
"""

from __future__ import annotations

import math
import time
from contextvars import ContextVar
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from web.errors import ApiError, error_response

HEADER = "X-Request-Timeout"
MAX_TIMEOUT_S = 7 * 24 * 3600.0
_RULE = f"must be seconds as a decimal number above 0 and at most {MAX_TIMEOUT_S:g}"


@dataclass(frozen=True)
class _Deadline:
    given_s: float
    at: float


_current: ContextVar[_Deadline | None] = ContextVar("request_deadline", default=None)


def allowed_s(limit_s: float) -> float:
    """The seconds that this request may take in all: the client's, at most `limit_s`."""
    deadline = _current.get()
    return limit_s if deadline is None else min(limit_s, deadline.given_s)


def remaining_s(limit_s: float) -> float:
    """What is left of the client's seconds, at most `limit_s` and never negative."""
    deadline = _current.get()
    if deadline is None:
        return limit_s
    return max(0.0, min(limit_s, deadline.at - time.monotonic()))


def too_late(who: str, limit_s: float) -> ApiError:
    """What a request gets that `who` did not finish within them."""
    message = f"{who} did not finish within {allowed_s(limit_s):g} s, the request deadline"
    return ApiError(504, message, code="deadline_exceeded")


class DeadlineMiddleware:
    """Pure ASGI; `web.serve.serve` puts it around every tier. A bad header is a 400."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get(HEADER) if scope["type"] == "http" else None
        if given is None:
            await self._app(scope, receive, send)
            return
        seconds = _parse(given)
        if seconds is None:
            message = f"header {HEADER}: {_RULE}"
            refusal = error_response(
                400, message, param=HEADER, code="invalid_value", value=given[:100]
            )
            await refusal(scope, receive, send)
            return
        token = _current.set(_Deadline(seconds, time.monotonic() + seconds))
        try:
            await self._app(scope, receive, send)
        finally:
            _current.reset(token)


def _parse(given: str) -> float | None:
    try:
        seconds = float(given)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and 0 < seconds <= MAX_TIMEOUT_S else None
