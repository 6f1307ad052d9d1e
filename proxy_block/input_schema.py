"""The JSON Schema of `data`, out of what checks it."""

from __future__ import annotations

from typing import Any

from proxy_block import component

_PLACE = "#/components/schemas/"
_TEXT = {"type": "string", "minLength": 1}
_OUTPUTS = ("reply", "generated")


def input_schemas() -> dict[str, Any]:
    """Schemas by name: Input, and what its batches hold, a level deeper each.

    A schema cannot bound its own depth, so that every level has one of its own.
    """
    question = component.Question.model_json_schema(ref_template=_PLACE + "{model}")
    schemas: dict[str, Any] = question.pop("$defs", {})
    fields: dict[str, Any] = question["properties"]
    rest = {name: rule for name, rule in fields.items() if name != "message"} | {"usage": {}}
    fields["message"] = {"anyOf": [_TEXT, *(_output(name, {"usage": {}}) for name in _OUTPUTS)]}
    forms = [_TEXT, question, *(_output(name, rest) for name in _OUTPUTS)]
    depth = component.INPUT["inputs"]["max_depth"]
    for level in range(depth):
        schemas[_name(level)] = {"anyOf": [*forms, *_batches(_name(level + 1))]}
    return schemas | {_name(depth): {"anyOf": forms}}


def _batches(item: str) -> list[dict[str, Any]]:
    """A list of `item`, bare and under inputs."""
    rules = component.INPUT["inputs"]
    items = {"type": "array", "items": {"$ref": _PLACE + item}}
    items |= {"minItems": rules["min_items"], "maxItems": rules["max_items"]}
    return [items, _object({"inputs": items}, "inputs")]


def _output(name: str, rest: dict[str, Any]) -> dict[str, Any]:
    """What another block put out."""
    return _object({name: {"type": "string"}, **rest}, name)


def _object(properties: dict[str, Any], required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [required],
        "properties": properties,
    }


def _name(level: int) -> str:
    return f"InputLevel{level}" if level else "Input"
