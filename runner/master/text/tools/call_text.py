"""One answer's text, taken apart into what it says and what it calls.

Read character by character, so that how the text is cut changes nothing. What may be the beginning
of a call is held back until it is one, or is said after all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Generator, Iterable
from typing import NamedTuple, TypeAlias

from runner.master.text.tools.families import Family

_ARGUMENTS = ("arguments", "parameters")
# Outside of a string it begins a marker, so that a broken object does not take the rest with it.
_NEVER_IN_JSON = "<"
_OF_A_NAME = frozenset("_-.")


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


class _NoCall(Exception):
    """The last character that was read cannot belong to a call."""


Reading: TypeAlias = Generator[None, str, str]


class CallReader:
    """Of one choice; `parts` gets what is called. `hidden` are markers that are no text: where they
    turn out to open nothing, they are not said. A call without a marker counts where its name is
    one of `names`.

    The arguments are the model's own text, as it wrote them; a call has begun with the first
    character of them, and stands whatever comes then. White space around calls is dropped.
    """

    def __init__(
        self,
        family: Family,
        parts: CallParts,
        *,
        hidden: Collection[str] = (),
        names: Collection[str] = (),
    ) -> None:
        self._family, self._parts = family, parts
        self._hidden, self._names = frozenset(hidden), frozenset(names)
        self._content: list[str] = []
        # Read, and neither said nor a part of a call so far.
        self._held: list[str] = []
        self._again = ""  # to be read once more
        # Nothing is said, or a call has just ended.
        self._may_be_bare = family.is_bare
        self._is_open = False  # a call has begun and not ended
        self._reading = self._answer()
        next(self._reading)

    def push(self, text: str) -> str:
        """What became certain with `text` of what is said."""
        for character in text:
            self._reading.send(character)
        return self._taken()

    def flush(self) -> str:
        """The rest, when the text has ended."""
        self._let_go()
        return self._taken()

    def _taken(self) -> str:
        content, self._content = "".join(self._content), []
        return content

    def _answer(self) -> Reading:
        while True:
            marker = yield from self._text()
            self._is_open = False
            try:
                yield from self._calls(marker)
            except _NoCall:
                self._unread()
                self._let_go()

    def _let_go(self) -> None:
        """What is held is no call; white space behind one, and what is left of one, is nothing."""
        text = "".join(self._held)
        self._held.clear()
        if not self._is_open and not (self._parts.begun and text.isspace()):
            self._say(text)
        self._is_open = False

    def _say(self, text: str) -> None:
        self._content.append(text)
        if text.strip():
            self._may_be_bare = False

    def _text(self) -> Reading:
        """Up to a marker that opens a call, "" for an object that does so; it is held."""
        openings = self._family.openings
        markers = (*openings, self._family.closing) if self._family.closing else openings
        tail = ""
        while True:
            character = yield from self._character()
            if not tail and character.isspace():
                continue
            tail += character
            if tail == "{" and self._may_be_bare:
                return ""
            while tail and not any(marker.startswith(tail) for marker in markers):
                # With the white space before it.
                said = len(self._held) - len(tail) + 1
                self._say("".join(self._held[:said]))
                del self._held[:said]
                tail = tail[1:].lstrip()
            if tail in openings:
                return tail
            if tail == self._family.closing and self._parts.begun:
                self._held.clear()
                tail = ""

    def _calls(self, marker: str) -> Reading:
        if marker in self._hidden:
            del self._held[-len(marker) :]
        character = (yield from self._visible()) if marker else "{"
        if character == "[":
            yield from self._list()
        elif character == "{":
            yield from self._object()
            if self._family.is_bare:
                yield from self._separator()
        elif self._family.is_named and _is_of_a_name(character):
            yield from self._named(character)
        else:
            raise _NoCall
        return ""

    def _separator(self) -> Reading:
        """Between two objects that nothing marks."""
        self._may_be_bare = True
        character = yield from self._visible()
        if character not in ";,":
            self._unread()
        return ""

    def _list(self) -> Reading:
        while True:
            if (yield from self._visible()) != "{":
                raise _NoCall
            yield from self._object()
            character = yield from self._visible()
            if character == "]":
                self._held.clear()
                return ""
            if character != ",":
                raise _NoCall

    def _object(self) -> Reading:
        """From behind its brace; the arguments may stand before the name."""
        name, early = "", ""
        while (character := (yield from self._visible())) != "}":
            if character == ",":
                continue
            if character != '"':
                raise _NoCall
            key = yield from self._string()
            if (yield from self._visible()) != ":":
                raise _NoCall
            first = yield from self._visible()
            if key == "name" and not name:
                name = yield from self._name(first)
            elif key not in _ARGUMENTS or self._is_open or early:
                yield from self._value(first, _nothing)
            elif name:
                yield from self._arguments(name, first)
            else:
                collected: list[str] = []
                yield from self._value(first, collected.append)
                early = "".join(collected)
        if not name:
            raise _NoCall
        if not self._is_open:
            self._begin(name, _as_object(early))
        self._is_open = False
        self._held.clear()
        return ""

    def _name(self, first: str) -> Reading:
        name = (yield from self._string()) if first == '"' else ""
        is_known = not self._family.is_bare or name in self._names
        if not name or not is_known:
            raise _NoCall
        return name

    def _named(self, first: str) -> Reading:
        name = first
        while _is_of_a_name(character := (yield from self._character())):
            name += character
        self._unread()
        character = yield from self._visible()
        while character == "[":
            while (yield from self._character()) != "]":
                pass
            while (character := (yield from self._visible())).isalnum():
                pass
        if character != "{":
            raise _NoCall
        yield from self._arguments(name, character)
        self._is_open = False
        return ""

    def _arguments(self, name: str, first: str) -> Reading:
        """As they come. Some models write them as a string of JSON."""
        if first in "{[":
            self._begin(name, "")
            yield from self._value(first, self._argue)
            return ""
        collected: list[str] = []
        yield from self._value(first, collected.append)
        self._begin(name, _as_object("".join(collected)))
        return ""

    def _begin(self, name: str, arguments: str) -> None:
        self._parts.begin(name)
        self._is_open = True
        if arguments:
            self._argue(arguments)
        self._held.clear()

    def _argue(self, text: str) -> None:
        self._parts.argue(text)
        self._held.clear()

    def _value(self, first: str, put: Callable[[str], None]) -> Reading:
        """A value of JSON that begins so, each of its characters to `put`."""
        character, depth, in_string = first, 0, False
        while True:
            if not in_string and character == _NEVER_IN_JSON:
                raise _NoCall
            if not in_string and not depth and character in ",}] \t\r\n":
                self._unread()
                return ""
            put(character)
            if in_string and character == "\\":
                put((yield from self._character()))
            elif character == '"':
                in_string = not in_string
            elif not in_string and character in "{[":
                depth += 1
            elif not in_string and character in "}]":
                depth -= 1
            if not depth and not in_string and character in '}]"':
                return ""
            character = yield from self._character()

    def _string(self) -> Reading:
        """From behind its quote, decoded."""
        raw: list[str] = []
        while (character := (yield from self._character())) != '"':
            raw.append(character)
            if character == "\\":
                raw.append((yield from self._character()))
        try:
            return _decoded(f'"{"".join(raw)}"')
        except ValueError:
            raise _NoCall from None

    def _visible(self) -> Reading:
        while (character := (yield from self._character())).isspace():
            pass
        return character

    def _character(self) -> Reading:
        if self._again:
            character, self._again = self._again, ""
        else:
            character = yield
        self._held.append(character)
        return character

    def _unread(self) -> None:
        self._again = self._held.pop()


def whole_calls(parts: Iterable[CallPart]) -> list[CallPart]:
    """Each call as one part."""
    calls: list[CallPart] = []
    for part in parts:
        if part.name is not None:
            calls.append(part)
        else:
            calls[-1] = calls[-1]._replace(arguments=calls[-1].arguments + part.arguments)
    return calls


def _nothing(_text: str) -> None:
    pass


def _is_of_a_name(character: str) -> bool:
    return character in _OF_A_NAME or (character.isascii() and character.isalnum())


def _as_object(arguments: str) -> str:
    """Arguments that are no object, as an object's text: of a string its text, of nothing {}."""
    if not arguments.startswith('"'):
        return "{}" if arguments in ("", "null") else arguments
    try:
        return _decoded(arguments)
    except ValueError:
        return arguments


def _decoded(string: str) -> str:
    """Raises ValueError, for half of a surrogate pair too, which is JSON and no text."""
    text: str = json.loads(string, strict=False)
    text.encode()
    return text
