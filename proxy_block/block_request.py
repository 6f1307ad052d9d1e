"""The block protocol's messages, POST /infer and POST /management, and the questions in them.

`data` of a block request is a question or a batch. A question is a string (a completion),
{message, mode, system_message, generation_config}, AIOS's {prompt}, which is a message to be
completed, or what another block put out, {reply} or {generated}, also as the message.
{"inputs": [...]}, or just a list, is a batch of any of these; a generation_config beside inputs is
the default of each. Any of them may come as a string of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from contract.near_names import hint
from proxy_block import component
from proxy_block.component import RESET_ARGUMENTS, ResetArguments, fields_model
from web.body import parse
from web.errors import invalid_field
from web.unserved import NOT_SUPPORTED, Table, Unserved, served_fields

CHAT: Final = "chat"
COMPLETIONS: Final = "completions"
Mode: TypeAlias = Literal["chat", "completions"]
# What puts a text out, and the mode in which it did.
_OUTPUTS: dict[str, Mode] = {"reply": CHAT, "generated": COMPLETIONS}
# What has the text of a question, and its mode where the question names none.
_CARRIERS: dict[str, Mode] = {"message": CHAT, "prompt": COMPLETIONS, **_OUTPUTS}
# The words of component.json, AIOS's among them.
_MODES: dict[str, Mode] = {"chat": CHAT, "completions": COMPLETIONS, "generate": COMPLETIONS}
_NO_TOKENS = (
    "is not supported: a block gives out text, not token ids; one of chat, completions and "
    "generate, the same as completions"
)
# What AIOS's own clients send beside a question's fields, and beside session_id and seq_no.
_FILES = Unserved("is not supported: send text in message", ({}, []))
UNSERVED: Table = {"files": _FILES, "file": _FILES}
UNSERVED_ENVELOPE: Table = {
    "ts": Unserved("says when the client asked, and nothing depends on that", anything=True)
}
_BATCH = component.INPUT["inputs"]
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
class Question:
    """One question. `path` is where it stands; `system_message` None takes the session's."""

    path: str
    message: str
    mode: Mode
    system_message: str | None
    generation_config: dict[str, Any]


Input: TypeAlias = "Question | tuple[Input, ...]"


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
        raise invalid_field("data", "is required")
    data = document.pop("data")
    envelope = parse(_Envelope, served_fields(document, UNSERVED_ENVELOPE)).model_dump()
    return BlockRequest(envelope["session_id"], envelope["seq_no"], parse_data(data))


def parse_management_request(document: dict[str, Any]) -> ResetRequest:
    """Raises ApiError 400."""
    arguments = document.pop("data", None)
    parse(_Management, document)
    fields = parse(ResetArguments, {} if arguments is None else arguments, "data")
    return ResetRequest(fields.model_dump()["session_id"])


def parse_data(data: Any) -> Input:
    """A question, or a tuple of what a batch holds; raises ApiError 400."""
    parsed = _parse(data, "data", 0, {})
    count, limit = sum(1 for _ in questions(parsed)), _BATCH["max_items"]
    if count > limit:
        raise invalid_field("data", f"must hold at most {limit} questions, not {count}", data)
    return parsed


def questions(given: Input) -> Iterator[Question]:
    """Every question of `given`, in order."""
    if isinstance(given, Question):
        yield given
    else:
        for item in given:
            yield from questions(item)


def _parse(value: Any, path: str, depth: int, defaults: dict[str, Any]) -> Input:
    """`defaults` is the generation_config of the batches around it."""
    if depth > _BATCH["max_depth"]:
        raise invalid_field(
            path, f"must not be nested deeper than {_BATCH['max_depth']} levels", value
        )
    if isinstance(value, str):
        decoded = _decoded(value)
        if isinstance(decoded, str):
            return _question({"message": decoded, "mode": COMPLETIONS}, path, depth, defaults)
        return _parse(decoded, path, depth + 1, defaults)
    if isinstance(value, list):
        return _batch(value, path, depth, defaults)
    if not isinstance(value, dict):
        raise invalid_field(path, "must be a string, an object, or a list of these", value)
    if "inputs" not in value:
        return _question(value, path, depth, defaults)
    rest = served_fields(value, UNSERVED, path)
    for name in rest:
        if name not in ("inputs", "generation_config"):
            rule = "is not allowed beside inputs; each of these brings its own"
            raise invalid_field(f"{path}.{name[:80]}", rule + hint(name, ["generation_config"]))
    given = rest.get("generation_config")
    if given is not None:
        config = parse(component.GenerationConfig, given, f"{path}.generation_config")
        defaults = defaults | config.model_dump(exclude_none=True)
    return _batch(value["inputs"], f"{path}.inputs", depth, defaults)


def _batch(value: Any, path: str, depth: int, defaults: dict[str, Any]) -> Input:
    if not isinstance(value, list):
        raise invalid_field(path, "must be a list", value)
    if not _BATCH["min_items"] <= len(value) <= _BATCH["max_items"]:
        rule = f"must have {_BATCH['min_items']} to {_BATCH['max_items']} items, not {len(value)}"
        raise invalid_field(path, rule, value)
    return tuple(
        _parse(item, f"{path}[{index}]", depth + 1, defaults) for index, item in enumerate(value)
    )


def _question(value: dict[str, Any], path: str, depth: int, defaults: dict[str, Any]) -> Question:
    rest = served_fields(value, UNSERVED, path)
    carriers = [name for name in _CARRIERS if name in rest]
    if len(carriers) > 1:
        rule = f"is given beside {carriers[0]}; give one of {', '.join(_CARRIERS)}"
        raise invalid_field(f"{path}.{carriers[1]}", rule, value[carriers[1]])
    for name in carriers:
        rest["message"] = _text(rest.pop(name), f"{path}.{name}", depth)
        if name in _OUTPUTS:
            for other in component.BESIDE_OUTPUT:
                rest.pop(other, None)
        if rest.get("mode") is None:
            rest["mode"] = _CARRIERS[name]
    rest["mode"] = _mode(rest.get("mode"), f"{path}.mode")
    # A model may end at once: what it put out is a message all the same.
    empty = rest.get("message") == "" != value.get("message", value.get("prompt"))
    checked = {**rest, "message": "-"} if empty else rest
    fields = parse(component.Question, checked, path).model_dump(exclude_none=True)
    return Question(
        path=path,
        message="" if empty else fields["message"],
        mode=_MODES[fields["mode"]],
        system_message=fields.get("system_message"),
        generation_config=defaults | fields.get("generation_config", {}),
    )


def _mode(given: Any, path: str) -> Any:
    """In small letters; what is no mode is for the protocol to judge."""
    if not isinstance(given, str):
        return given
    mode = given.lower()
    if mode == "tokens":
        raise invalid_field(path, _NO_TOKENS, given, NOT_SUPPORTED)
    return mode if mode in _MODES else given


def _text(value: Any, path: str, depth: int) -> Any:
    """The text in what another block put out; everything else is for the protocol to judge."""
    if not isinstance(value, dict):
        return value
    if depth > _BATCH["max_depth"]:
        raise invalid_field(
            path, f"must not be nested deeper than {_BATCH['max_depth']} levels", value
        )
    given = [name for name in _OUTPUTS if name in value]
    if len(given) != 1 or value.keys() - {*given, *component.BESIDE_OUTPUT}:
        raise invalid_field(path, 'must be a string, {"reply": ...} or {"generated": ...}', value)
    return _text(value[given[0]], f"{path}.{given[0]}", depth + 1)


def _decoded(text: str) -> Any:
    """What `text` is as JSON where that is an object, a list or a string; else itself."""
    if text.lstrip()[:1] not in ("{", "[", '"'):
        return text
    try:
        decoded = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return decoded if _is_text(decoded) else text


def _is_text(value: Any) -> bool:
    """Lone surrogates are JSON but no text."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError):
        return False
    return True
