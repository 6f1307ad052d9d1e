"""The messages of a chat, checked: each with its content as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from contract.faults import path_of
from contract.near_names import hint
from runner.errors import InvalidField
from runner.master.api.unserved import MESSAGE, PART
from web.unserved import Table

# What a template is given of a message, beside what every message has.
_FURTHER_TEXTS = ("name", "reasoning_content")
MESSAGE_FIELDS = ("role", "content", *_FURTHER_TEXTS)
PART_FIELDS = ("type", "text")
# Of messages and their parts together: each is looked at on the event loop.
MAX_MESSAGES = 16_384


def conversation(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with content as text; raises InvalidField naming the one that is wrong."""
    if not messages:
        raise InvalidField("messages", [], "must have at least one message")
    return [_message(f"messages[{place}]", item) for place, item in enumerate(messages)]


def check_number(messages: object) -> None:
    """Raises InvalidField; whatever else is wrong is not looked at."""
    if not isinstance(messages, list):
        return
    contents = (item.get("content") for item in messages if isinstance(item, dict))
    number = len(messages) + sum(len(parts) for parts in contents if isinstance(parts, list))
    if number > MAX_MESSAGES:
        rule = f"must have at most {MAX_MESSAGES} messages and parts of messages"
        raise InvalidField("messages", f"{number} of both", rule)


def _message(field: str, message: dict[str, Any]) -> dict[str, Any]:
    _check_fields(field, message, MESSAGE_FIELDS, MESSAGE, "is not a field of a message")
    for name in _FURTHER_TEXTS:
        if not isinstance(message.get(name), str | None):
            raise InvalidField(f"{field}.{name}", message[name], "must be a string")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        rule = 'must be a string such as "system", "user" or "assistant"'
        raise InvalidField(f"{field}.role", role, rule)
    text = _content(f"{field}.content", message.get("content"))
    kept: dict[str, Any] = {name: message[name] for name in _FURTHER_TEXTS if name in message}
    # OpenAI's newer word for system; the templates of open models know only the older.
    return {"role": "system" if role == "developer" else role, "content": text, **kept}


def _content(field: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise InvalidField(field, content, "must be a string or a list of parts of type text")
    texts: list[str] = []
    for place, part in enumerate(content):
        path = f"{field}[{place}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            raise InvalidField(path, part, 'must be {"type": "text", "text": ...}: text only')
        if not isinstance(part.get("text"), str):
            raise InvalidField(f"{path}.text", part.get("text"), "must be a string")
        _check_fields(path, part, PART_FIELDS, PART, "is not a field of a part of type text")
        texts.append(part["text"])
    return "".join(texts)


def _check_fields(
    field: str, document: Mapping[str, Any], served: Sequence[str], unserved: Table, unknown: str
) -> None:
    """Raises InvalidField for the first key that is neither served nor asks for nothing."""
    for name, value in document.items():
        if name in served:
            continue
        row = unserved.get(name)
        if row is None or not row.asks_nothing(value):
            rule = (row and row.why) or unknown + hint(name, served)
            raise InvalidField(path_of((name,), field), value, rule)
