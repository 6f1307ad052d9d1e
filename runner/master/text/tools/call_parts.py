"""What is read of calls, piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple


class CallPart(NamedTuple):
    """What became known of a call: with its `name` it begins, with None its arguments go on."""

    place: int
    name: str | None
    arguments: str


class CallParts:
    """Collects what is read of calls, until it is taken.

    With `one_only` further ones are dropped.
    """

    def __init__(self, *, one_only: bool = False) -> None:
        self._one_only = one_only
        self._new: list[tuple[int, str | None, list[str]]] = []
        self.begun = 0

    def begin(self, name: str) -> None:
        self.begun += 1
        if not self._is_dropped():
            self._new.append((self.begun - 1, name, []))

    def argue(self, text: str) -> None:
        """More of the arguments of the call that has begun last."""
        if self._is_dropped():
            return
        if not self._new:
            self._new.append((self.begun - 1, None, []))
        self._new[-1][2].append(text)

    def taken(self) -> tuple[CallPart, ...]:
        new, self._new = self._new, []
        return tuple(CallPart(index, name, "".join(texts)) for index, name, texts in new)

    def _is_dropped(self) -> bool:
        return self._one_only and self.begun > 1


def whole_calls(parts: Iterable[CallPart]) -> list[CallPart]:
    """Each call as one part."""
    calls: list[CallPart] = []
    for part in parts:
        if part.name is not None:
            calls.append(part)
        else:
            calls[-1] = calls[-1]._replace(arguments=calls[-1].arguments + part.arguments)
    return calls


def as_object(arguments: str) -> str:
    """Arguments that are no object, as an object's text: of a string its text, of nothing {}."""
    if not arguments.startswith('"'):
        return "{}" if arguments in ("", "null") else arguments
    try:
        return decoded(arguments)
    except ValueError:
        return arguments


def decoded(string: str) -> str:
    """Raises ValueError, for half of a surrogate pair too, which is JSON and no text."""
    text: str = json.loads(string, strict=False)
    text.encode()
    return text
