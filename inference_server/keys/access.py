"""Who may ask: the API key of a request checked before anything else, and its limits kept."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from contract.api_keys import ApiKey
from inference_server.keys.api_keys import ApiKeys
from inference_server.keys.limits import KeyUse
from web.errors import ApiError

# The page asks for the key itself; probes and Prometheus have none.
PUBLIC_PATHS = frozenset({"/", "/livez", "/readyz", "/metrics", "/openapi.json"})
PUBLIC_FOLDERS = ("/page/",)
SCHEME = "bearer"


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
