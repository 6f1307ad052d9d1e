"""Calls that a conversation has already, and what the tools gave: each result is of a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.errors import InvalidField
from runner.master.api.fields import check_fields
from runner.master.api.unserved import CALL, CALLED

CALL_FIELDS = ("id", "type", "function")
CALLED_FIELDS = ("name", "arguments")
_ROLE_RULE = 'is allowed only with role "{}"'


class EarlierCalls:
    """Takes the messages in order."""

    def __init__(self) -> None:
        # Those of the assistant's message before, by id.
        self._open: Mapping[str, str] = {}

    def of(self, field: str, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message's own `tool_calls` or `tool_call_id` as a template gets them, {} without.

        The arguments of a call stay text. Raises InvalidField.
        """
        role = message.get("role")
        calls, call_id = message.get("tool_calls") or None, message.get("tool_call_id")
        if calls is not None and role != "assistant":
            raise InvalidField(f"{field}.tool_calls", calls, _ROLE_RULE.format("assistant"))
        if role == "tool":
            return self._result(f"{field}.tool_call_id", call_id)
        if call_id is not None:
            raise InvalidField(f"{field}.tool_call_id", call_id, _ROLE_RULE.format("tool"))
        self._open = {}
        if calls is None:
            return {}
        if not isinstance(calls, list):
            raise InvalidField(f"{field}.tool_calls", calls, "must be a list")
        read = [_call(f"{field}.tool_calls[{place}]", call) for place, call in enumerate(calls)]
        self._open = {call["id"]: call["function"]["name"] for call in read}
        return {"tool_calls": read}

    def _result(self, field: str, call_id: object) -> dict[str, Any]:
        if not isinstance(call_id, str) or call_id not in self._open:
            rule = "must be the id of a call in the assistant's message that the results follow"
            raise InvalidField(field, call_id, rule)
        # Some templates name the function that a result is of.
        return {"tool_call_id": call_id, "name": self._open[call_id]}


def _call(field: str, call: object) -> dict[str, Any]:
    rule = 'must be {"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}'
    if not isinstance(call, Mapping):
        raise InvalidField(field, call, rule)
    check_fields(field, call, CALL_FIELDS, CALL, "is not a field of a call")
    if call.get("type", "function") != "function":
        raise InvalidField(f"{field}.type", call["type"], 'must be "function"')
    if not isinstance(call.get("id"), str) or not call["id"]:
        raise InvalidField(f"{field}.id", call.get("id"), "must be a string, and not empty")
    function, path = call.get("function"), f"{field}.function"
    if not isinstance(function, Mapping):
        raise InvalidField(path, function, 'must be {"name": ..., "arguments": ...}')
    check_fields(path, function, CALLED_FIELDS, CALLED, "is not a field of what was called")
    for name in CALLED_FIELDS:
        if not isinstance(function.get(name), str):
            raise InvalidField(f"{path}.{name}", function.get(name), "must be a string")
    kept = {name: function[name] for name in CALLED_FIELDS}
    return {"id": call["id"], "type": "function", "function": kept}
