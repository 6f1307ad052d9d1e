"""Verbs that change something: who asks for one proves that it is of the stack.

Generation is kept apart by network policies, and what only reads is open.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from contract.signature import MANAGEMENT_OUTPUT, same
from web.errors import ApiError

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_SCHEME = "bearer"
_WHERE = (
    f"KEY is the stack's output {MANAGEMENT_OUTPUT}: "
    f"`pulumi stack output {MANAGEMENT_OUTPUT} --show-secrets`"
)


class Proof:
    """`key` reads the management key as it is now; without it nobody has one.

    A process that listens on a loopback address asks for none: its machine is one user's.
    """

    def __init__(self, bind_address: str, key: Callable[[], str] | None = None) -> None:
        self._asks, self._key = not _is_loopback(bind_address), key

    def guard(self, routes: Iterable[Route], generating: Collection[str]) -> list[Route]:
        """Every one of `routes`; those that neither read nor have a path in `generating` are
        behind the proof, the ones somebody adds later among them."""
        return [
            route if _reads(route) or route.path in generating else self._guarded(route)
            for route in routes
        ]

    def _guarded(self, route: Route) -> Route:
        return Route(
            route.path,
            route.endpoint,
            methods=list(route.methods or ()),
            middleware=[Middleware(_Guard, check=self.check)],
        )

    def check(self, headers: Headers) -> None:
        """Raises ApiError 401 that says what to present and where it is."""
        if not self._asks:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != _SCHEME or not given.strip():
            raise _refused(f"must be `Bearer KEY`: this verb changes what others get. {_WHERE}")
        if self._key is None:
            raise _refused(
                "no key is right: this process was started without --management-key-file"
            )
        if not same(given.strip(), self._key()):
            raise _refused(f"this is not the stack's management key. {_WHERE}")


class _Guard:
    """Pure ASGI, around one route; checks before the body is read."""

    def __init__(self, app: ASGIApp, check: Callable[[Headers], None]) -> None:
        self._app, self._check = app, check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check(Headers(scope=scope))
        await self._app(scope, receive, send)


def _reads(route: Route) -> bool:
    """Only where its methods are named: a route without any takes all of them."""
    return bool(route.methods) and _READING.issuperset(route.methods or ())


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _refused(rule: str) -> ApiError:
    return ApiError(
        401,
        f"header Authorization: {rule}",
        param="Authorization",
        code="invalid_management_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
