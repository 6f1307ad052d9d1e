"""/openapi.json: the block's API, its bodies out of the models that check them."""

from __future__ import annotations

from functools import partial
from typing import Any

from contract.signature import MANAGEMENT_OUTPUT
from contract.specs import ProxySpec
from proxy_block import component
from web.openapi import document, object_of, operation, readiness

_REASONS = {
    400: "A field is wrong: the body names it, its value and the rule.",
    401: "No management key, or not the stack's.",
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
_operation = partial(operation, _REASONS)
_PLACE = "#/components/schemas/"
_TEXT = {"type": "string", "minLength": 1}
_KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "The stack's management key, where the block listens beyond its own machine.",
}


def openapi_document(spec: ProxySpec) -> dict[str, Any]:
    """What the OpenAI endpoints take in detail is the engine's to say."""
    paths = {
        "/infer": {"post": _infer()},
        "/management": {"post": _management()},
        "/v1/chat/completions": {"post": _openai("Chat as OpenAI does.", "model", "messages")},
        "/v1/completions": {"post": _openai("Complete as OpenAI does.", "model", "prompt")},
        "/v1/chat/": {"post": _openai("Chat as AIOS does, answered as OpenAI's.", "messages")},
        "/v1/models": {"get": _operation("The engine's models.", (404, 502, 503))},
        "/sessions/{session_id}": {"get": _session()},
        "/component.json": {"get": _operation("What the block takes and gives.")},
        "/openapi.json": {"get": _operation("This document.")},
        "/livez": {"get": _operation("Whether the process turns.")},
        "/readyz": {
            "get": readiness(
                "Whether the block and everything behind it serve.",
                "It serves.",
                "It does not; reason says why.",
            )
        },
    }
    described = document(f"Proxy block {spec.block_id}", paths, _input_schemas())
    described["components"]["securitySchemes"] = {MANAGEMENT_OUTPUT: _KEY}
    return described


def _infer() -> dict[str, Any]:
    rules = component.RESET_ARGUMENTS["session_id"]
    lengths = {"minLength": rules["min_length"], "maxLength": rules["max_length"]}
    fields: dict[str, Any] = {
        "session_id": {"type": "string", **lengths},
        "seq_no": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
        "data": {"$ref": _PLACE + "Input"},
    }
    return _operation(
        "Ask the block.",
        (*_ASKING, 409),
        body=object_of(fields | {"ts": {}}, *fields, closed=True),
        answer=object_of({"data": {"type": ["object", "array"]}}, "data"),
        answer_is="The answer.",
    )


def _management() -> dict[str, Any]:
    arguments = component.ResetArguments.model_json_schema()
    fields = {
        "action": {"enum": ["reset"]},
        "data": {"anyOf": [arguments, {"type": "null"}]},
    }
    described = _operation(
        "Forget sessions.",
        (400, 401, 413, 415, 503),
        body=object_of(fields, "action", closed=True),
        answer_is="The answer.",
    )
    return described | {"security": [{}, {MANAGEMENT_OUTPUT: []}]}


def _session() -> dict[str, Any]:
    fields = {
        "session_id": {"type": "string"},
        "seq_no": {"type": ["integer", "null"]},
        "turns": {"type": "integer"},
    }
    named = {"type": "string", "minLength": 1}
    place = {"name": "session_id", "in": "path", "required": True, "schema": named}
    return _operation(
        "How far a session is; without one seq_no is null.",
        (503,),
        answer=object_of(fields, *fields),
        parameters=[place],
    )


def _openai(summary: str, *required: str) -> dict[str, Any]:
    return _operation(
        summary,
        (*_ASKING, 404),
        body={"type": "object", "required": list(required)},
        answer_is="The answer; with stream, as events.",
        events={},
    )


def _input_schemas() -> dict[str, Any]:
    """The schema of `data`, out of what checks it: Input, and what its batches hold.

    A schema cannot bound its own depth, so that every level has one of its own.
    """
    question = component.Question.model_json_schema(ref_template=_PLACE + "{model}")
    schemas: dict[str, Any] = question.pop("$defs", {})
    fields: dict[str, Any] = question["properties"]
    beside: dict[str, Any] = {name: {} for name in component.BESIDE_OUTPUT}
    rest = {name: rule for name, rule in fields.items() if name != "message"} | beside
    fields["message"] = {
        "anyOf": [_TEXT, *(_output(name, beside) for name in component.OUTPUT_TEXTS)]
    }
    prompt = {name: rule for name, rule in fields.items() if name != "message"}
    to_complete = object_of({"prompt": fields["message"], **prompt}, "prompt", closed=True)
    outputs = [_output(name, rest) for name in component.OUTPUT_TEXTS]
    forms = [_TEXT, question, to_complete, *outputs]
    depth = component.INPUT["inputs"]["max_depth"]
    for level in range(depth):
        config = fields["generation_config"]
        schemas[_name(level)] = {"anyOf": [*forms, *_batches(_name(level + 1), config)]}
    return schemas | {_name(depth): {"anyOf": forms}}


def _batches(item: str, config: dict[str, Any]) -> list[dict[str, Any]]:
    """A list of `item`, bare and under inputs, where the generation_config of all may be."""
    rules = component.INPUT["inputs"]
    items = {"type": "array", "items": {"$ref": _PLACE + item}}
    items |= {"minItems": rules["min_items"], "maxItems": rules["max_items"]}
    under = {"inputs": items, "generation_config": config}
    return [items, object_of(under, "inputs", closed=True)]


def _output(name: str, rest: dict[str, Any]) -> dict[str, Any]:
    """What another block put out."""
    return object_of({name: {"type": "string"}, **rest}, name, closed=True)


def _name(level: int) -> str:
    return f"InputLevel{level}" if level else "Input"
