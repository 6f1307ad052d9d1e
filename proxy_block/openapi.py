"""/openapi.json: this block's API, its bodies out of the models that check them."""

from __future__ import annotations

from typing import Any

from contract.specs import ProxySpec
from proxy_block import component
from proxy_block.input_schema import input_schemas
from web.openapi import ERROR_SCHEMA, READINESS_SCHEMA, error_answers, json_answer, json_body

_ERRORS = {
    400: "A field is wrong: the body names it, its value and the rule.",
    404: "The engine has no such model.",
    409: "seq_no lies below the last one answered in this session.",
    413: "The body is larger than this block takes.",
    415: "The body is a file.",
    429: "The engine is full; Retry-After says when to come again.",
    502: "The master broke off.",
    503: "The master or the session store does not serve, or this process is draining.",
    504: "Not finished within the request deadline.",
}
_ASKING = (400, 413, 415, 429, 502, 503, 504)
_OBJECT = {"type": "object"}


def openapi_document(spec: ProxySpec) -> dict[str, Any]:
    """OpenAPI 3.1. What the OpenAI endpoints take in detail is the engine's to say."""
    reset = _post("Forget sessions.", _management(), _OBJECT, (400, 413, 415, 503))
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Proxy block {spec.block_id}", "version": "1"},
        "paths": {
            "/infer": {"post": _post("Ask the block.", _infer(), _answer(), (*_ASKING, 409))},
            "/management": {"post": reset},
            "/v1/chat/completions": {"post": _openai("Chat as OpenAI does.", "messages")},
            "/v1/completions": {"post": _openai("Complete as OpenAI does.", "prompt")},
            "/v1/models": {"get": _get("The engine's models.", (404, 502, 503))},
            "/component.json": {"get": _get("What the block takes and gives.")},
            "/openapi.json": {"get": _get("This document.")},
            "/livez": {"get": _get("Whether the process turns.")},
            "/readyz": {"get": _readyz()},
        },
        "components": {"schemas": {"Error": ERROR_SCHEMA, **input_schemas()}},
    }


def _infer() -> dict[str, Any]:
    rules = component.RESET_ARGUMENTS["session_id"]
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["session_id", "seq_no", "data"],
        "properties": {
            "session_id": {
                "type": "string",
                "minLength": rules["min_length"],
                "maxLength": rules["max_length"],
            },
            "seq_no": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
            "data": {"$ref": "#/components/schemas/Input"},
        },
    }


def _management() -> dict[str, Any]:
    arguments = component.ResetArguments.model_json_schema()
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["action"],
        "properties": {
            "action": {"enum": ["reset"]},
            "data": {"anyOf": [arguments, {"type": "null"}]},
        },
    }


def _answer() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": ["object", "array"]}},
    }


def _post(
    summary: str, body: dict[str, Any], answer: dict[str, Any], statuses: tuple[int, ...]
) -> dict[str, Any]:
    responses = {"200": json_answer(answer, "The answer."), **error_answers(_ERRORS, statuses)}
    return {"summary": summary, "requestBody": json_body(body), "responses": responses}


def _openai(summary: str, required: str) -> dict[str, Any]:
    body = {"type": "object", "required": ["model", required]}
    content = {"application/json": {"schema": _OBJECT}, "text/event-stream": {}}
    answer = {"description": "The answer; with stream, as events.", "content": content}
    return {
        "summary": summary,
        "requestBody": json_body(body),
        "responses": {"200": answer, **error_answers(_ERRORS, (*_ASKING, 404))},
    }


def _get(summary: str, statuses: tuple[int, ...] = ()) -> dict[str, Any]:
    responses = {"200": json_answer(_OBJECT, summary), **error_answers(_ERRORS, statuses)}
    return {"summary": summary, "responses": responses}


def _readyz() -> dict[str, Any]:
    parameter = {
        "name": "self",
        "in": "query",
        "allowEmptyValue": True,
        "schema": {"type": "string"},
        "description": "Asks about this process alone.",
    }
    return {
        "summary": "Whether the block and everything behind it serve.",
        "parameters": [parameter],
        "responses": {
            "200": json_answer(READINESS_SCHEMA, "It serves."),
            "503": json_answer(READINESS_SCHEMA, "It does not; reason says why."),
        },
    }
