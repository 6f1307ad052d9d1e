"""The form in which a chat template reads messages, found by rendering probes when it is loaded.

A template that gets a form which it does not read leaves the text out without a word: loops over
a string's characters for parts of type text, or has no branch for system messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol, TypeAlias

from runner.errors import InvalidField, ModelUnavailable

Messages: TypeAlias = list[dict[str, Any]]
Tools: TypeAlias = Sequence[Mapping[str, Any]]

# Small letters only: a template may trim, or change what looks like markup.
_PROBE = "wxprobeqz"
_FILLING = "hello"
# Nine letters and digits: templates of Mistral's refuse others.
_CALL_ID = "a1b2c3d4e"


class Render(Protocol):
    """A template; it may raise anything."""

    def __call__(self, messages: Messages, tools: Tools | None = None, /) -> str: ...


class Arguments(Enum):
    """In which form a template reads the arguments of earlier calls."""

    OBJECT = auto()
    TEXT = auto()


@dataclass(frozen=True, slots=True)
class MessageForms:
    """Which roles' content is read as a list of parts, and whether system messages are read, and
    the reasoning of answers to earlier messages, tools, and calls of them.

    `parts` are role names; a role that is not among `known` goes in the user's form. `arguments` is
    None where calls are not read.
    """

    parts: frozenset[str]
    known: frozenset[str]
    takes_system: bool
    keeps_reasoning: bool
    takes_tools: bool = False
    arguments: Arguments | None = None

    @classmethod
    def found(cls, render: Render) -> MessageForms:
        """Of the template behind `render`, which may raise anything; ModelUnavailable is raised on.

        A template that shows a user's text in neither form tells nothing; it gets all as it is.
        """
        forms: dict[str, bool | None] = {"user": _form(render, "user", user_parts=False)}
        user_parts = bool(forms["user"])
        for role in ("system", "assistant"):
            forms[role] = _form(render, role, user_parts=user_parts)
        arguments = _arguments(render, forms)
        if arguments is not None:
            forms["tool"] = _tool_form(render, forms, arguments)
        return cls(
            parts=frozenset(role for role, parts in forms.items() if parts),
            known=frozenset(role for role, parts in forms.items() if parts is not None),
            takes_system=forms["user"] is None or forms["system"] is not None,
            keeps_reasoning=_keeps_reasoning(render, forms),
            takes_tools=_takes_tools(render, user_parts=user_parts),
            arguments=arguments,
        )

    def apply(self, messages: Sequence[dict[str, Any]]) -> Messages:
        """`messages`, content as text, as the template reads them.

        Where it reads no system messages, those that lead are merged into the user's message after
        them; raises InvalidField for others, and for calls where it reads none. Arguments of calls
        are texts.
        """
        for place, message in enumerate(messages):
            if "tool_calls" in message and self.arguments is None:
                rule = "is not read by the model's chat template: put what was called into content"
                calls = f"{len(message['tool_calls'])} calls"
                raise InvalidField(f"messages[{place}].tool_calls", calls, rule)
        if not self.takes_system:
            messages = _without_system(messages)
        return [self._as_read(message) for message in messages]

    def _as_read(self, message: dict[str, Any]) -> dict[str, Any]:
        if "tool_calls" in message and self.arguments is Arguments.OBJECT:
            message = {**message, "tool_calls": [_with_object(it) for it in message["tool_calls"]]}
        if self._takes_parts(message):
            return {**message, "content": _parts(message["content"])}
        return message

    def _takes_parts(self, message: dict[str, Any]) -> bool:
        role = message["role"] if message["role"] in self.known else "user"
        return role in self.parts and isinstance(message.get("content"), str)


def _form(render: Render, role: str, *, user_parts: bool) -> bool | None:
    """Whether the template reads this role's content as parts; None if in neither form."""
    user = _message("user", _FILLING, user_parts)
    for parts in (False, True):
        probe = _message(role, _PROBE, parts)
        conversations = {"user": [probe], "system": [probe, user], "assistant": [user, probe, user]}
        if _shows(render, conversations[role]):
            return parts
    return None


def _keeps_reasoning(render: Render, forms: Mapping[str, bool | None]) -> bool:
    """Whether what was thought before an earlier answer stands in the prompt."""
    user = _message("user", _FILLING, bool(forms["user"]))
    answer = _message("assistant", _FILLING, bool(forms["assistant"]))
    return _shows(render, [user, {**answer, "reasoning_content": _PROBE}, user])


def _takes_tools(render: Render, *, user_parts: bool) -> bool:
    """Whether what a request's tools are called stands in the prompt."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    function = {"name": _PROBE, "description": _FILLING, "parameters": schema}
    conversation = [_message("user", _FILLING, user_parts)]
    return _shows(render, conversation, [{"type": "function", "function": function}])


def _arguments(render: Render, forms: Mapping[str, bool | None]) -> Arguments | None:
    """The form in which an earlier call's arguments stand in the prompt; None if in neither."""
    for form, value in ((Arguments.OBJECT, {"city": _PROBE}), (Arguments.TEXT, _PROBE)):
        if _shows(render, [*_called(forms, value), _result(_FILLING)]):
            return form
    return None


def _tool_form(
    render: Render, forms: Mapping[str, bool | None], arguments: Arguments
) -> bool | None:
    """As `_form`, of what a tool gave."""
    value = {"city": _FILLING} if arguments is Arguments.OBJECT else _FILLING
    for parts in (False, True):
        if _shows(render, [*_called(forms, value), _result(_PROBE, parts)]):
            return parts
    return None


def _called(forms: Mapping[str, bool | None], arguments: object) -> Messages:
    function = {"name": _FILLING, "arguments": arguments}
    call = {"id": _CALL_ID, "type": "function", "function": function}
    answer = _message("assistant", "", bool(forms["assistant"]))
    return [_message("user", _FILLING, bool(forms["user"])), {**answer, "tool_calls": [call]}]


def _result(text: str, parts: bool = False) -> dict[str, Any]:
    return {**_message("tool", text, parts), "tool_call_id": _CALL_ID, "name": _FILLING}


def _with_object(call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with its arguments as an object; those that are none stay the text that they are."""
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = function["arguments"]
    return {**call, "function": {**function, "arguments": arguments}}


def _message(role: str, text: str, parts: bool) -> dict[str, Any]:
    return {"role": role, "content": _parts(text) if parts else text}


def _shows(render: Render, conversation: Messages, tools: Tools | None = None) -> bool:
    try:
        return _PROBE in render(conversation, tools)
    except ModelUnavailable:  # it has no end
        raise
    except Exception:  # a template is foreign code; to refuse is an answer too
        return False


def _parts(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]


def _without_system(messages: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    places = [place for place, message in enumerate(messages) if message["role"] == "system"]
    if not places:
        return messages
    leading, rest = messages[: len(places)], messages[len(places) :]
    all_lead = places[-1] < len(places)
    if not all_lead or not rest or rest[0]["role"] != "user":
        rule = (
            "is not read by the model's chat template: served are only system messages at the "
            "beginning that a user's message follows, as a part of it"
        )
        place = places[0] if all_lead else places[-1]
        raise InvalidField(f"messages[{place}].role", "system", rule)
    text = "\n\n".join(message["content"] for message in (*leading, rest[0]))
    return [{**rest[0], "content": text}, *rest[1:]]
