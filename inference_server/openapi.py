"""/openapi.json: the public API."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from inference_server.infer.request import InferRequest
from inference_server.openai_api import MODEL_RULE
from web.deadline import HEADER as TIMEOUT_HEADER
from web.deadline import MAX_TIMEOUT_S
from web.openapi import (
    ERROR_SCHEMA,
    READINESS_SCHEMA,
    error_answers,
    json_answer,
    json_body,
)

OPENAPI_PATH = "/openapi.json"
_ERRORS = {
    400: "Something is wrong: the body names the field, its value and the rule.",
    401: "No API key, or one that is not known.",
    404: "No such block, model or log.",
    409: "seq_no lies below the last one answered in this session.",
    413: "The body is larger than this server takes.",
    415: "The body is a file.",
    429: "The key has used up its limits, or the engine is full; Retry-After says until when.",
    502: "A block broke off, or answered what is no answer.",
    503: "No replica of the block serves, or this process is draining.",
    504: "Not finished within the request deadline.",
}
_ASKING = (400, 401, 404, 413, 415, 429, 502, 503, 504)
_OBJECT = {"type": "object"}
_LIST = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _OBJECT}},
}
_KEY = {"type": "http", "scheme": "bearer", "description": "Where the server was given API keys."}
_TIMEOUT = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "description": "Seconds that the client waits; shortens the server's own deadline.",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S},
}


def openapi_document(title: str) -> dict[str, Any]:
    """OpenAPI 3.1. `data` is for the block to check: its /component.json says what it takes."""
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1"},
        "paths": {
            "/v1/infer": {"post": _infer()},
            "/v1/chat/completions": {"post": _generate("Chat as OpenAI does.", "messages")},
            "/v1/completions": {"post": _generate("Complete as OpenAI does.", "prompt")},
            "/v1/models": {"get": _get("What `model` may be.", _LIST, (401,))},
            "/v1/models/{model}": {"get": _get("One of them.", _OBJECT, (401, 404, 503), "model")},
            "/v1/blocks": {"get": _get("Blocks with labels, health and load.", _LIST, (401,))},
            "/logs/request/{id}": {"get": _logs("The questions of one request.")},
            "/logs/session/{id}": {"get": _logs("The questions of one session.")},
            "/logs/block/{id}": {"get": _logs("The questions to one block.")},
            "/livez": {"get": _get("Whether the process turns.", _OBJECT, ())},
            "/readyz": {"get": _readyz()},
        },
        "security": [{}, {"key": []}],
        "components": {
            "schemas": {"Error": ERROR_SCHEMA},
            "securitySchemes": {"key": _KEY},
        },
    }


def openapi_route(deployment_name: str) -> Route:
    document = openapi_document(f"Splitstack {deployment_name}")

    async def openapi(_request: Request) -> Response:
        return JSONResponse(document)

    return Route(OPENAPI_PATH, openapi)


def _infer() -> dict[str, Any]:
    schema = InferRequest.model_json_schema()
    schema["properties"] |= {
        "data": {"type": ["object", "string"]},
        "selection_query": {
            "type": ["object", "null"],
            "description": "AIOS's form, or {component?, tags?: [...], labels?: {...}}.",
        },
        "graph": {
            "type": ["object", "null"],
            "description": "{block: [the blocks that follow it]}; `model` is where it begins.",
        },
    }
    answer = {
        "type": "object",
        "required": ["model", "session_id", "seq_no", "ts", "data"],
        "properties": {
            "model": {"type": "string"},
            "session_id": {"type": "string"},
            "seq_no": {"type": "integer"},
            "ts": {"type": "number"},
            "data": {"type": ["object", "array"]},
        },
    }
    return {
        "summary": "Ask a block, a chosen block or a graph of blocks.",
        "parameters": [_TIMEOUT],
        "requestBody": json_body(schema),
        "responses": {
            "200": json_answer(answer, "What the block or the graph put out."),
            **error_answers(_ERRORS, (*_ASKING, 409)),
        },
    }


def _generate(summary: str, content: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["model", content],
        "properties": {
            "model": {"type": "string", "minLength": 1, "description": MODEL_RULE},
            "stream": {"type": ["boolean", "null"]},
        },
    }
    answer = json_answer(_OBJECT, "The answer; with stream, events.")
    answer["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "summary": summary,
        "parameters": [_TIMEOUT],
        "requestBody": json_body(schema),
        "responses": {"200": answer, **error_answers(_ERRORS, _ASKING)},
    }


def _get(
    summary: str, schema: dict[str, Any], statuses: tuple[int, ...], parameter: str = ""
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": json_answer(schema, summary), **error_answers(_ERRORS, statuses)},
    }
    if parameter:
        text = {"type": "string", "minLength": 1}
        operation["parameters"] = [
            {"name": parameter, "in": "path", "required": True, "schema": text}
        ]
    return operation


def _logs(summary: str) -> dict[str, Any]:
    return _get(summary, _LIST, (401, 404, 503), "id")


def _readyz() -> dict[str, Any]:
    itself = {
        "name": "self",
        "in": "query",
        "allowEmptyValue": True,
        "description": "Asks about this process alone.",
        "schema": {"type": "string"},
    }
    return {
        "summary": "Whether some block serves.",
        "parameters": [itself],
        "responses": {
            "200": json_answer(READINESS_SCHEMA, "It does."),
            "503": json_answer(READINESS_SCHEMA, "None does; reason says why."),
        },
    }
