"""OpenAPI documents: how the tiers describe their operations, their errors and their readiness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Schema = Mapping[str, Any]
OPENAPI_PATH = "/openapi.json"
OBJECT: Schema = {"type": "object"}


def object_of(properties: Schema, *required: str, closed: bool = False) -> dict[str, Any]:
    """An object's schema; with `closed` it has no other properties."""
    schema = {"type": "object", "required": list(required), "properties": properties}
    return schema | {"additionalProperties": False} if closed else schema


ERROR_REFERENCE = {"$ref": "#/components/schemas/Error"}
_NAME, _NAME_OR_NULL = {"type": "string"}, {"type": ["string", "null"]}
ERROR_SCHEMA = object_of(
    {
        "error": object_of(
            {
                "message": _NAME,
                "type": _NAME,
                "param": _NAME_OR_NULL,
                "code": _NAME_OR_NULL,
                "value": _NAME,
                "request_id": _NAME,
            },
            *("message", "type", "param", "code"),
        )
    },
    "error",
)
_READINESS = object_of({"ready": {"type": "boolean"}, "reason": {"type": "string"}}, "ready")
_ITSELF = {
    "name": "self",
    "in": "query",
    "allowEmptyValue": True,
    "description": "Asks about this process alone.",
    "schema": {"type": "string"},
}


def document(title: str, paths: Schema, schemas: Schema) -> dict[str, Any]:
    """OpenAPI 3.1; `schemas` are those that `paths` refer to beside Error."""
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1"},
        "paths": paths,
        "components": {"schemas": {"Error": ERROR_SCHEMA, **schemas}},
    }


def openapi_route(described: dict[str, Any]) -> Route:
    async def openapi(_request: Request) -> Response:
        return JSONResponse(described)

    return Route(OPENAPI_PATH, openapi)


def operation(
    reasons: Mapping[int, str],
    summary: str,
    errors: Sequence[int] = (),
    *,
    answer: Schema = OBJECT,
    answer_is: str = "",
    events: Schema | None = None,
    body: Schema | None = None,
    parameters: Sequence[Schema] = (),
) -> dict[str, Any]:
    """One operation. `reasons` says what each status of `errors` means in this API.

    `answer_is` describes what comes with 200, `summary` where it is left out; `events` is given
    where that may also be an event stream.
    """
    found = _json(answer, answer_is or summary)
    if events is not None:
        found["content"]["text/event-stream"] = events
    refused = {str(status): _json(ERROR_REFERENCE, reasons[status]) for status in errors}
    described: dict[str, Any] = {"summary": summary, "responses": {"200": found, **refused}}
    if body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": body}},
        }
    if parameters:
        described["parameters"] = list(parameters)
    return described


def readiness(summary: str, ready: str, not_ready: str) -> dict[str, Any]:
    """GET /readyz as web.health answers it."""
    return {
        "summary": summary,
        "parameters": [_ITSELF],
        "responses": {"200": _json(_READINESS, ready), "503": _json(_READINESS, not_ready)},
    }


def _json(schema: Schema, description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
