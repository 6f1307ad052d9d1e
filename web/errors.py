"""The one error body of every tier, in the shape of OpenAI's API.

{"error": {"message", "type", "param", "code", "value"?, "request_id"?}}
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from contract.faults import MISSING, Fault, shown_value
from web.request_id import current_request_id

# Nobody reads it; the metrics count it under the number that many proxies use.
CLIENT_LEFT = 499
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
log = logging.getLogger("web.error")


class ApiError(Exception):
    """An error that becomes this body; raised wherever a request is handled."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        value: Any = MISSING,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body = error_body(status, message, param=param, code=code, value=value)


def invalid_field(
    path: str, rule: str, value: Any = MISSING, code: str = "invalid_value"
) -> ApiError:
    """400: the field at `path` breaks `rule`; `value` is what was sent there."""
    return ApiError(400, str(Fault(path, value, rule)), param=path, code=code, value=value)


def error_body(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    value: Any = MISSING,
) -> dict[str, Any]:
    """The body as a dict; also what a stream that has begun sends as its last event."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
    if value is not MISSING:
        error["value"] = shown_value(value)
    if request_id := current_request_id():
        error["request_id"] = request_id
    return {"error": error}


def status_of(body: Mapping[str, Any]) -> int:
    """The status of an error that came as the last event of a stream, as far as its body tells."""
    kind = body["error"].get("type")
    if kind == "invalid_request_error":
        return 400
    return next((status for status, name in _TYPES.items() if name == kind), 500)


def error_response(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    value: Any = MISSING,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """`param` is the path of the field at fault, `value` what was sent there (shown cut short)."""
    body = error_body(status, message, param=param, code=code, value=value)
    return JSONResponse(body, status, headers=headers)


def install_error_handlers(app: Starlette, served: Sequence[str] = ()) -> None:
    """ApiError, unknown paths and methods, and defects of our own all answer with this body.

    `served` are the paths that a client may have meant when it asks for one that is not here.
    """

    async def api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return JSONResponse(error.body, error.status, headers=error.headers)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path[:200]}: {error.detail}"
        if error.status_code == HTTPStatus.NOT_FOUND and served:
            message += f"; served here are {', '.join(served)}"
        return error_response(error.status_code, message, headers=error.headers)

    async def client_left(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_LEFT)

    async def defect(_: Request, error: Exception) -> Response:
        log.error("request failed", exc_info=error)
        return error_response(500, "internal error; the log has the trace")

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(ClientDisconnect, client_left)
    app.add_exception_handler(Exception, defect)
