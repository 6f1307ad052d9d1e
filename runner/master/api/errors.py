"""The runner's exceptions as HTTP answers."""

from __future__ import annotations

import logging
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runner.errors import InvalidField, RunnerError
from web.errors import ApiError

_log = logging.getLogger(__name__)


def _api_error(error: Exception) -> ApiError:
    """`error` in the words of HTTP; the log has what is a defect of ours."""
    if not isinstance(error, RunnerError) or error.code == RunnerError.code:
        _log.error("a request failed", exc_info=error)
        message = "the master failed to serve this request; its log says why"
        return ApiError(RunnerError.status, message, code=RunnerError.code)
    again = error.retry_after_s
    return ApiError(
        error.status,
        str(error),
        param=error.field if isinstance(error, InvalidField) else None,
        code=error.code,
        headers=None if again is None else {"Retry-After": str(again)},
    )


def failure_body(error: Exception) -> dict[str, Any]:
    """The error as the last event of a stream that has begun."""
    return _api_error(error).body


def install_failure_handler(app: Starlette) -> None:
    async def failed(_request: Request, error: Exception) -> Response:
        answer = _api_error(error)
        return JSONResponse(answer.body, answer.status, headers=answer.headers)

    app.add_exception_handler(RunnerError, failed)
