"""The X-Request-Domain header: on whose behalf a request comes, carried through the tiers.

Requests of one domain share what they have, requests of several share fairly. The inference server
makes it of the API key's name and takes none from outside; a block asked without one is a domain of
its own. It is no secret and proves nothing: who reaches a tier directly may say any.
"""

from __future__ import annotations

import hashlib
import re
from contextvars import ContextVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

HEADER = "X-Request-Domain"
_ACCEPTED = re.compile(r"[0-9a-f]{32}")
_current: ContextVar[str] = ContextVar("request_domain", default="")


def current_domain() -> str:
    """Of the request that this task serves; "" where nobody says."""
    return _current.get()


def domain_of(name: str) -> str:
    """What stands for `name` in the header; "" for none."""
    return hashlib.sha256(name.encode()).hexdigest()[:32] if name else ""


def enter_domain(domain: str) -> None:
    """Of the request that this task serves, whatever was said before."""
    _current.set(domain)


class DomainMiddleware:
    """Pure ASGI, of the tiers behind the public API. Requests that bring none, or what is none,
    are of the domain `otherwise`."""

    def __init__(self, app: ASGIApp, otherwise: str = "") -> None:
        self._app, self._otherwise = app, otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = Headers(scope=scope).get(HEADER, "")
            enter_domain(given if _ACCEPTED.fullmatch(given) else self._otherwise)
        await self._app(scope, receive, send)
