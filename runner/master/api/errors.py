"""The runner's exceptions as HTTP answers."""

from __future__ import annotations

import logging
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from runner.errors import (
    DeadlineExceeded,
    EngineFull,
    InvalidField,
    NotServing,
    PromptTooLong,
    RunnerError,
)
from web.errors import error_body, error_response

_log = logging.getLogger(__name__)
NOT_SERVING_RETRY_AFTER_S = 1


def _status_and_arguments(error: Exception) -> tuple[int, str, dict[str, Any]]:
    """HTTP status, message, and what else the error body says."""
    text = str(error)
    match error:
        case PromptTooLong():
            arguments = {"param": error.field, "code": "context_length_exceeded"}
            return 400, text, arguments
        case UnknownModel():
            return 404, text, {"param": "model", "code": "model_not_found"}
        case InvalidField():
            return 400, text, {"param": error.field, "code": "invalid_value"}
        case EngineFull():
            return 429, text, {"code": "engine_full"}
        case NotServing():
            return 503, text, {"code": "not_serving"}
        case DeadlineExceeded():
            return 504, text, {"code": "deadline_exceeded"}
    _log.error("a request failed", exc_info=error)
    return 500, "the master failed to serve this request; its log says why", {"code": "internal"}


class UnknownModel(InvalidField):
    """The request names a model that this master does not serve."""


def failure_response(error: Exception) -> Response:
    status, message, arguments = _status_and_arguments(error)
    headers = {}
    if isinstance(error, EngineFull):
        headers["Retry-After"] = str(error.retry_after_s)
    elif isinstance(error, NotServing):
        headers["Retry-After"] = str(NOT_SERVING_RETRY_AFTER_S)
    return error_response(status, message, headers=headers, **arguments)


def failure_body(error: Exception) -> dict[str, Any]:
    """The error as the last event of a stream that has begun."""
    status, message, arguments = _status_and_arguments(error)
    return error_body(status, message, **arguments)


def install_failure_handlers(app: Starlette) -> None:
    async def failed(_request: Request, error: Exception) -> Response:
        return failure_response(error)

    app.add_exception_handler(RunnerError, failed)
