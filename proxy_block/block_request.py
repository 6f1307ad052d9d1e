"""The block protocol's messages: POST /infer and POST /management."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from proxy_block.block_input import Input, parse_data
from proxy_block.component import RESET_ARGUMENTS, ResetArguments, fields_model
from web.body import parse
from web.errors import ApiError

_MAX_SEQ_NO = 2**63 - 1
_Envelope = fields_model(
    "Envelope",
    {
        "session_id": RESET_ARGUMENTS["session_id"] | {"required": True},
        "seq_no": {"type": "integer", "min": 0, "max": _MAX_SEQ_NO, "required": True},
    },
)
_Management = fields_model(
    "Management", {"action": {"type": "string", "enum": ["reset"], "required": True}}
)


@dataclass(frozen=True)
class BlockRequest:
    """POST /infer; the answer is {"data": ...}. `seq_no` counts the session's requests."""

    session_id: str
    seq_no: int
    asked: Input


@dataclass(frozen=True)
class ResetRequest:
    """POST /management with action reset; `session_id` None is every session of the block."""

    session_id: str | None


def parse_block_request(document: dict[str, Any]) -> BlockRequest:
    """Raises ApiError 400."""
    if "data" not in document:
        raise ApiError(400, "data: is required", param="data", code="invalid_value")
    data = document.pop("data")
    envelope = parse(_Envelope, document).model_dump()
    return BlockRequest(envelope["session_id"], envelope["seq_no"], parse_data(data))


def parse_management_request(document: dict[str, Any]) -> ResetRequest:
    """Raises ApiError 400."""
    arguments = document.pop("data", None)
    parse(_Management, document)
    fields = parse(ResetArguments, {} if arguments is None else arguments, "data")
    return ResetRequest(fields.model_dump()["session_id"])
