"""What the OpenAPI documents of the tiers share: the error body and how answers are described."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

ERROR_REFERENCE = {"$ref": "#/components/schemas/Error"}
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
                "value": {"type": "string"},
                "request_id": {"type": "string"},
            },
        }
    },
}
READINESS_SCHEMA = {
    "type": "object",
    "required": ["ready"],
    "properties": {"ready": {"type": "boolean"}, "reason": {"type": "string"}},
}


def json_answer(schema: Mapping[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def json_body(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def error_answers(reasons: Mapping[int, str], statuses: Iterable[int]) -> dict[str, Any]:
    """The `responses` of these statuses; `reasons` says what each means in this API."""
    return {str(status): json_answer(ERROR_REFERENCE, reasons[status]) for status in statuses}
