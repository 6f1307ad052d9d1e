"""The messages of a chat, checked: each with its content as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from runner.errors import InvalidField
from runner.master.api.earlier_calls import EarlierCalls
from runner.master.api.fields import check_fields
from runner.master.api.unserved import MESSAGE, PART

# What a template is given of a message, beside what every message has.
_FURTHER_TEXTS = ("name", "reasoning_content")
_OF_CALLS = ("tool_calls", "tool_call_id")
MESSAGE_FIELDS = ("role", "content", *_FURTHER_TEXTS, *_OF_CALLS)
PART_FIELDS = ("type", "text")
# Of messages, their parts and calls together: each is looked at on the event loop.
MAX_MESSAGES = 16_384


def conversation(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with content as text; raises InvalidField naming the one that is wrong."""
    if not messages:
        raise InvalidField("messages", [], "must have at least one message")
    calls = EarlierCalls()
    return [_message(f"messages[{place}]", item, calls) for place, item in enumerate(messages)]


def characters_of(messages: Sequence[dict[str, Any]]) -> int:
    """Of what `conversation` has made, all texts of the client's own."""
    return sum(
        len(message["content"]) + sum(map(len, _texts_of_calls(message))) for message in messages
    )


def _texts_of_calls(message: dict[str, Any]) -> Iterator[str]:
    for call in message.get("tool_calls", ()):
        yield from call["function"].values()


def check_number(messages: object) -> None:
    """Raises InvalidField; whatever else is wrong is not looked at."""
    if not isinstance(messages, list):
        return
    objects = [item for item in messages if isinstance(item, dict)]
    lists = (item.get(name) for item in objects for name in ("content", "tool_calls"))
    number = len(messages) + sum(len(parts) for parts in lists if isinstance(parts, list))
    if number > MAX_MESSAGES:
        rule = f"must have at most {MAX_MESSAGES} messages, parts of messages and calls of tools"
        raise InvalidField("messages", f"{number} of them", rule)


def _message(field: str, message: dict[str, Any], calls: EarlierCalls) -> dict[str, Any]:
    check_fields(field, message, MESSAGE_FIELDS, MESSAGE, "is not a field of a message")
    for name in _FURTHER_TEXTS:
        if not isinstance(message.get(name), str | None):
            raise InvalidField(f"{field}.{name}", message[name], "must be a string")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        rule = 'must be a string such as "system", "user" or "assistant"'
        raise InvalidField(f"{field}.role", role, rule)
    of_calls = calls.of(field, message)
    content = message.get("content")
    if content is None and "tool_calls" in of_calls:
        content = ""
    text = _content(f"{field}.content", content)
    kept: dict[str, Any] = {name: message[name] for name in _FURTHER_TEXTS if name in message}
    # OpenAI's newer word for system; the templates of open models know only the older.
    role = "system" if role == "developer" else role
    return {"role": role, "content": text, **of_calls, **kept}


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
        check_fields(path, part, PART_FIELDS, PART, "is not a field of a part of type text")
        texts.append(part["text"])
    return "".join(texts)
