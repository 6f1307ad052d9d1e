"""Who may ask: the API key of a request checked before anything else, and its limits kept.

What a key uses is counted in this process only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from contract.api_keys import ApiKey
from inference_server.keys.api_keys import ApiKeys
from web.domain import domain_of, enter_domain
from web.errors import ApiError
from web.serve import READINESS

# The page asks for the key itself; probes and Prometheus have none.
PUBLIC_PATHS = frozenset({"/", "/livez", *READINESS, "/metrics", "/openapi.json"})
PUBLIC_FOLDERS = ("/page/",)
SCHEME = "bearer"
MINUTE_S = 60.0


class KeyUse:
    """A token bucket that holds a minute's tokens and is charged when they are known, so that a
    request may overdraw it; the next one then waits until it is refilled."""

    def __init__(self) -> None:
        self._running = 0
        self._spent = 0.0
        self._spent_at = time.monotonic()

    def take(self, key: ApiKey) -> None:
        """A place for one request, to be released at its end. Raises ApiError 429."""
        if key.max_concurrent is not None and self._running >= key.max_concurrent:
            rule = f"key {key.name} has {self._running} requests running, all that it may"
            raise _too_many(f"{rule} (max_concurrent)", "concurrency_limit_exceeded", 1)
        if key.tokens_per_minute is None:
            # Nothing is owed should the key be given a limit later.
            self._spent, self._spent_at = 0.0, time.monotonic()
        else:
            self._refill(key.tokens_per_minute)
            if self._spent >= key.tokens_per_minute:
                over = self._spent - key.tokens_per_minute + 1
                wait_s = math.ceil(over * MINUTE_S / key.tokens_per_minute)
                rule = f"key {key.name} has used its {key.tokens_per_minute} tokens per minute"
                raise _too_many(rule, "token_rate_limit_exceeded", wait_s)
        self._running += 1

    def release(self) -> None:
        self._running -= 1

    def charge(self, tokens: int) -> None:
        self._spent += tokens

    def _refill(self, tokens_per_minute: int) -> None:
        now = time.monotonic()
        back = (now - self._spent_at) * tokens_per_minute / MINUTE_S
        self._spent, self._spent_at = max(0.0, self._spent - back), now


@dataclass(frozen=True)
class Caller:
    """Who a request is from. Without API keys everybody is the nameless one without limits."""

    name: str = ""
    reads_all_logs: bool = True
    use: KeyUse | None = None

    def session_id(self, given: str) -> str:
        """The session's name behind this server: a key has sessions of its own."""
        return f"{quote(self.name, safe='')}/{given}" if self.name else given

    def charge(self, tokens: int) -> None:
        if self.use is not None:
            self.use.charge(tokens)


class Access:
    """Pure ASGI; `limited` are the paths that generate. Puts the Caller into the request's state.

    Answers 401 without a known key, 429 when the key's limits are used up.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys | None, limited: Collection[str]) -> None:
        self._app, self._keys, self._limited = app, keys, frozenset(limited)
        self._uses: dict[str, KeyUse] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limited = scope["path"] in self._limited
        try:
            caller = self._admit(scope, limited)
        except ApiError as error:
            refusal = JSONResponse(error.body, error.status, headers=error.headers)
            await refusal(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        # Whatever the client says of itself.
        enter_domain(domain_of(caller.name))
        try:
            await self._app(scope, receive, send)
        finally:
            if limited and caller.use is not None:
                caller.use.release()

    def _admit(self, scope: Scope, limited: bool) -> Caller:
        if self._keys is None or _is_public(scope["path"]):
            return Caller()
        key = _identify(self._keys, Headers(scope=scope))
        use = self._uses.setdefault(key.name, KeyUse())
        if limited:
            use.take(key)
        return Caller(key.name, key.reads_all_logs, use)


def _is_public(path: str) -> bool:
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDERS)


def _identify(keys: ApiKeys, headers: Headers) -> ApiKey:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != SCHEME or not given.strip():
        raise _refused("header Authorization: must be `Bearer KEY`, with an API key of this server")
    key = keys.find(given.strip())
    if key is None:
        raise _refused("header Authorization: this API key is not known here, or was revoked")
    return key


def _refused(message: str) -> ApiError:
    headers = {"WWW-Authenticate": "Bearer"}
    return ApiError(401, message, param="Authorization", code="invalid_api_key", headers=headers)


def _too_many(message: str, code: str, wait_s: int) -> ApiError:
    return ApiError(429, message, code=code, headers={"Retry-After": str(wait_s)})
