"""/openapi.json: the public API."""

from __future__ import annotations

from functools import partial
from typing import Any

from inference_server.infer.request import InferRequest
from inference_server.openai_api import MODEL_RULE
from web.deadline import HEADER as TIMEOUT_HEADER
from web.deadline import MAX_TIMEOUT_S
from web.openapi import OBJECT, document, object_of, operation, readiness
from web.serve import READINESS

_REASONS = {
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
_operation = partial(operation, _REASONS)
_LIST = object_of(
    {"object": {"const": "list"}, "data": {"type": "array", "items": OBJECT}}, "object", "data"
)
_KEY = {"type": "http", "scheme": "bearer", "description": "Where the server was given API keys."}
_TIMEOUT = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "description": "Seconds that the client waits; shortens the server's own deadline.",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S},
}


def openapi_document(title: str) -> dict[str, Any]:
    """`data` is for the block to check: its /component.json says what it takes."""
    paths = {
        "/v1/infer": {"post": _infer()},
        "/v1/chat/completions": {"post": _generate("Chat as OpenAI does.", "messages")},
        "/v1/completions": {"post": _generate("Complete as OpenAI does.", "prompt")},
        "/v1/models": {"get": _operation("What `model` may be.", (401,), answer=_LIST)},
        "/v1/models/{model}": {
            "get": _operation("One of them.", (401, 404, 503), parameters=[_in_path("model")])
        },
        "/v1/blocks": {
            "get": _operation("Blocks with labels, health and load.", (401,), answer=_LIST)
        },
        "/logs/request/{id}": {"get": _logs("The questions of one request.")},
        "/logs/session/{id}": {"get": _logs("The questions of one session.")},
        "/logs/block/{id}": {"get": _logs("The questions to one block.")},
        "/livez": {"get": _operation("Whether the process turns.")},
        **{
            path: {
                "get": readiness(
                    "Whether some block serves.", "It does.", "None does; reason says why."
                )
            }
            for path in READINESS
        },
    }
    described = document(title, paths, {})
    described["security"] = [{}, {"key": []}]
    described["components"]["securitySchemes"] = {"key": _KEY}
    return described


def _infer() -> dict[str, Any]:
    body = InferRequest.model_json_schema()
    body["properties"] |= {
        "ts": {"description": "When the client asked; nothing depends on it."},
        "files": {"enum": [{}, [], None]},
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
    fields = {
        "model": {"type": "string"},
        "session_id": {"type": "string"},
        "seq_no": {"type": "integer"},
        "ts": {"type": "number"},
        "data": {"type": ["object", "array"]},
    }
    return _operation(
        "Ask a block, a chosen block or a graph of blocks.",
        (*_ASKING, 409),
        body=body,
        answer=object_of(fields, *fields),
        answer_is="What the block or the graph put out.",
        parameters=[_TIMEOUT],
    )


def _generate(summary: str, content: str) -> dict[str, Any]:
    fields = {
        "model": {"type": "string", "minLength": 1, "description": MODEL_RULE},
        "stream": {"type": ["boolean", "null"]},
    }
    return _operation(
        summary,
        _ASKING,
        body=object_of(fields, "model", content),
        answer_is="The answer; with stream, events.",
        events={"schema": {"type": "string"}},
        parameters=[_TIMEOUT],
    )


def _logs(summary: str) -> dict[str, Any]:
    return _operation(summary, (401, 404, 503), answer=_LIST, parameters=[_in_path("id")])


def _in_path(name: str) -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "schema": text}
