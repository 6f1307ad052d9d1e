"""One answer's text, taken apart into what it says and what it calls.

Read character by character, so that how the text is cut changes nothing. What may be the beginning
of a call is held back until it is one, or is said after all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator
from typing import TypeAlias

from runner.master.text.tools.call_parts import CallParts, as_object, decoded
from runner.master.text.tools.families import Family

_ARGUMENTS = ("arguments", "parameters")
# Outside of a string it begins a marker, so that a broken object does not take the rest with it.
_NEVER_IN_JSON = "<"
_OF_A_NAME = frozenset("_-.")


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
        self._is_between = True  # no marker has come
        closing = (family.closing,) if family.closing else ()
        self._markers = (*family.openings, *closing)
        self._first = re.compile("|".join(re.escape(marker[0]) for marker in self._markers))
        self._reading = self._answer()
        next(self._reading)

    def push(self, text: str) -> str:
        """What became certain with `text` of what is said."""
        place = 0
        while place < len(text):
            if plain := self._plain(text, place):
                self._say(plain)
                place += len(plain)
            else:
                self._reading.send(text[place])
                place += 1
        return self._taken()

    def flush(self) -> str:
        """The rest, when the text has ended."""
        self._let_go()
        return self._taken()

    def _plain(self, text: str, place: int) -> str:
        """What of `text` is said whatever comes: most of most answers, found at once."""
        if not self._is_between or self._held or self._may_be_bare:
            return ""
        found = self._first.search(text, place)
        return text[place : found.start() if found else None].rstrip()

    def _taken(self) -> str:
        content, self._content = "".join(self._content), []
        return content

    def _answer(self) -> Reading:
        while True:
            marker = yield from self._text()
            self._is_between = self._is_open = False
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
        openings, markers, tail = self._family.openings, self._markers, ""
        self._is_between = True
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
            self._begin(name, as_object(early))
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
        self._begin(name, as_object("".join(collected)))
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
            return decoded(f'"{"".join(raw)}"')
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


def _nothing(_text: str) -> None:
    pass


def _is_of_a_name(character: str) -> bool:
    return character in _OF_A_NAME or (character.isascii() and character.isalnum())
