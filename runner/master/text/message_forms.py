"""The form in which a chat template reads messages, found by rendering probes when it is loaded.

A template that gets a form which it does not read leaves the text out without a word: loops over
a string's characters for parts of type text, or has no branch for system messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from runner.errors import InvalidField, ModelUnavailable

Messages: TypeAlias = list[dict[str, Any]]
Render: TypeAlias = Callable[[Messages], str]

# Small letters only: a template may trim, or change what looks like markup.
_PROBE = "wxprobeqz"
_FILLING = "hello"


@dataclass(frozen=True, slots=True)
class MessageForms:
    """Which roles' content is read as a list of parts, and whether system messages are read, and
    the reasoning of answers to earlier messages.

    `parts` are role names; a role that is not among `known` goes in the user's form.
    """

    parts: frozenset[str]
    known: frozenset[str]
    takes_system: bool
    keeps_reasoning: bool

    @classmethod
    def found(cls, render: Render) -> MessageForms:
        """Of the template behind `render`, which may raise anything; ModelUnavailable is raised on.

        A template that shows a user's text in neither form tells nothing; it gets all as it is.
        """
        forms: dict[str, bool | None] = {"user": _form(render, "user", user_parts=False)}
        user_parts = bool(forms["user"])
        for role in ("system", "assistant"):
            forms[role] = _form(render, role, user_parts=user_parts)
        return cls(
            parts=frozenset(role for role, parts in forms.items() if parts),
            known=frozenset(role for role, parts in forms.items() if parts is not None),
            takes_system=forms["user"] is None or forms["system"] is not None,
            keeps_reasoning=_keeps_reasoning(render, forms),
        )

    def apply(self, messages: Sequence[dict[str, Any]]) -> Messages:
        """`messages`, content as text, as the template reads them.

        Where it reads no system messages, those that lead are merged into the user's message after
        them; raises InvalidField for others.
        """
        if not self.takes_system:
            messages = _without_system(messages)
        return [
            {**message, "content": _parts(message["content"])}
            if self._takes_parts(message)
            else message
            for message in messages
        ]

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


def _message(role: str, text: str, parts: bool) -> dict[str, Any]:
    return {"role": role, "content": _parts(text) if parts else text}


def _shows(render: Render, conversation: Messages) -> bool:
    try:
        return _PROBE in render(conversation)
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
