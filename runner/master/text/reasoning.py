"""A reasoning model's text, split into what it thinks and what it answers.

The markers are those of the model: think tags that its chat template names, or harmony's channels.
Both splitters are fed text in order, cut anywhere: how it is cut changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple, Protocol, TypeAlias

from tokenizers import Tokenizer

from runner.master.text.tools.call_parts import CallParts

# The special tokens in a text that was decoded without them: each one's place, and its id.
Marks: TypeAlias = Sequence[tuple[int, int]]

# A template that takes an answer apart names the end; the beginning is often the model's own word.
_THINK_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
)
_CHANNEL, _MESSAGE, _START = "<|channel|>", "<|message|>", "<|start|>"
_CONSTRAIN = "<|constrain|>"
_FUNCTION = re.compile(r"\bto=functions\.([a-zA-Z0-9_.-]+)")
_ENDS = ("<|end|>", "<|return|>", "<|call|>")
# Ids at the end of a prompt that hold a tag whatever its tokens, and the white space after it.
_TAIL = 24
# White space between the reasoning and an answer that is held to a form.
_AFTER_REASONING = 8


class Split(NamedTuple):
    """The new text of each kind."""

    reasoning: str
    content: str


class Splitter(Protocol):
    """Splits the text of one choice."""

    def push(self, text: str, marks: Marks = ()) -> Split:
        """What became certain with `text`."""

    def flush(self) -> Split:
        """The rest, when the text has ended."""


class ReasoningFormat(Protocol):
    """How one model marks its reasoning. `marks` are the ids whose places the text must tell."""

    @property
    def marks(self) -> frozenset[int]: ...

    def splitter(self, prompt_ids: Sequence[int], /) -> Splitter:
        """For an answer to this prompt, which may have opened the reasoning already."""

    def before_answer(self, prompt_ids: Sequence[int], /) -> str:
        """What may come before what a grammar holds the answer to, for Grammar.after."""


def reasoning_format(template: str, tokenizer: Tokenizer) -> ReasoningFormat | None:
    """The format of the model with this chat template; None where it names no markers."""
    special = {
        token.content: token_id
        for token_id, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
    }
    if _CHANNEL in template and {_CHANNEL, _MESSAGE, _START, _ENDS[0]} <= special.keys():
        known = (_CHANNEL, _MESSAGE, _START, _CONSTRAIN, *_ENDS)
        return Harmony({special[text]: text for text in known if text in special})
    for opening, closing in _THINK_TAGS:
        if closing in template:
            tags = {special[text]: text for text in (opening, closing) if text in special}
            return ThinkTags(opening, closing, tags, tokenizer)
    return None


@dataclass(frozen=True)
class ThinkTags:
    """A text's beginning between two tags. `special` are those that are special tokens, by id."""

    opening: str
    closing: str
    special: Mapping[int, str]
    tokenizer: Tokenizer

    @property
    def marks(self) -> frozenset[int]:
        return frozenset(self.special)

    def splitter(self, prompt_ids: Sequence[int], /) -> Splitter:
        return ThinkSplitter(self, opened=self._opened(prompt_ids))

    def before_answer(self, prompt_ids: Sequence[int], /) -> str:
        ids = {text: token_id for token_id, text in self.special.items()}
        closing, opening = ids.get(self.closing), ids.get(self.opening)
        thinking = f"thinking <[{closing}]>" if closing is not None else "thinking"
        suffix = "" if closing is not None else f"[suffix={json.dumps(self.closing)}]"
        begin = f"<[{opening}]>" if opening is not None else json.dumps(self.opening)
        start = f"{thinking} after" if self._opened(prompt_ids) else f"({begin} {thinking} after)?"
        return (
            f"start: {start} @content\n"
            f"thinking{suffix}: /(?s:.*)/\n"
            f"after: /[ \\t\\r\\n]{{0,{_AFTER_REASONING}}}/\n"
        )

    def _opened(self, prompt_ids: Sequence[int]) -> bool:
        tail = self.tokenizer.decode(list(prompt_ids[-_TAIL:]), skip_special_tokens=False)
        return tail.rstrip().endswith(self.opening)


@dataclass(frozen=True)
class Harmony:
    """Messages on channels, each of which begins and ends with special tokens, here by id."""

    tokens: Mapping[int, str]

    @property
    def marks(self) -> frozenset[int]:
        return frozenset(self.tokens)

    def splitter(
        self, _prompt_ids: Sequence[int] = (), /, calls: CallParts | None = None
    ) -> Splitter:
        """`calls` collects those of functions; else they are reasoning."""
        return HarmonySplitter(self.tokens, calls)

    def before_answer(self, _prompt_ids: Sequence[int], /, to: str = "") -> str:
        """With `to` the answer is a call of that function."""
        channel, message, start, end = (
            next(f"<[{token_id}]>" for token_id, text in self.tokens.items() if text == wanted)
            for wanted in (_CHANNEL, _MESSAGE, _START, _ENDS[0])
        )
        analysis = f'{channel} "analysis" {message} thinking {end} {start} "assistant"'
        header = f"commentary to=functions.{to} json" if to else "final"
        answer = f'{channel} "{header}" {message} @content'
        return f"start: ({analysis})* {answer}\nthinking: /(?s:.*)/\n"


class _Part(Enum):
    BEGINNING = auto()
    REASONING = auto()
    BETWEEN = auto()
    CONTENT = auto()


class ThinkSplitter:
    """White space around the reasoning belongs to neither. Tags that come later are content; a
    reasoning that does not end is all there is."""

    def __init__(self, tags: ThinkTags, *, opened: bool) -> None:
        self._tags = tags
        self._part = _Part.REASONING if opened else _Part.BEGINNING
        self._held = ""
        self._has_begun = False  # the reasoning has text

    def push(self, text: str, marks: Marks = ()) -> Split:
        reasoning = content = ""
        for piece, mark in _segments(text, marks):
            if mark is not None and self._part is _Part.CONTENT:
                continue
            self._held += piece if mark is None else self._tags.special[mark]
            split = self._take()
            reasoning, content = reasoning + split.reasoning, content + split.content
        return Split(reasoning, content)

    def flush(self) -> Split:
        held, self._held = self._held, ""
        reasons, begins = self._part is _Part.REASONING, self._part is _Part.BEGINNING
        return Split(held.rstrip() if reasons else "", held if begins else "")

    def _take(self) -> Split:
        reasoning = ""
        if self._part is _Part.BEGINNING:
            self._begin()
        if self._part is _Part.REASONING:
            reasoning = self._reason()
        if self._part is _Part.BETWEEN:
            self._held = self._held.lstrip()
            self._part = _Part.CONTENT if self._held else _Part.BETWEEN
        if self._part is not _Part.CONTENT:
            return Split(reasoning, "")
        content, self._held = self._held, ""
        return Split(reasoning, content)

    def _begin(self) -> None:
        text = self._held.lstrip()
        for tag, then in (
            (self._tags.opening, _Part.REASONING),
            (self._tags.closing, _Part.BETWEEN),
        ):
            if text.startswith(tag):
                self._held, self._part = text.removeprefix(tag), then
                return
        if not self._tags.opening.startswith(text) and not self._tags.closing.startswith(text):
            self._part = _Part.CONTENT

    def _reason(self) -> str:
        opening, closing = self._tags.opening, self._tags.closing
        if not self._has_begun:  # a model may say again what the prompt has opened
            while (held := self._held.lstrip()).startswith(opening):
                self._held = held.removeprefix(opening)
            self._held = held
            if opening.startswith(held):
                return ""
        text, found, rest = self._held.partition(closing)
        if found:
            self._held, self._part = rest, _Part.BETWEEN
            return text.rstrip()
        certain = text[: len(text) - _begun(text, closing)].rstrip()
        self._held = text[len(certain) :]
        self._has_begun = self._has_begun or bool(certain)
        return certain


@dataclass
class HarmonySplitter:
    """The final channel is content, and commentary that is addressed to nobody; analysis and the
    rest are reasoning; but what is addressed to a function is a call where `calls` collects them.
    Several messages of one kind stand on lines of their own. Text before any token of the format is
    content."""

    tokens: Mapping[int, str]
    calls: CallParts | None = None
    _header: str = ""
    _recipient: str = ""
    _in_header: bool = False
    _has_channel: bool = False
    _is_first: bool = False  # nothing of the format has come
    _is_content: bool = True
    _new_message: bool = False
    _said: set[bool] = field(default_factory=set)  # the kinds that have text: is it content

    def __post_init__(self) -> None:
        self._in_header = self._is_first = self.calls is not None

    def push(self, text: str, marks: Marks = ()) -> Split:
        split = {True: "", False: ""}
        for piece, mark in _segments(text, marks):
            if mark is not None:
                self._turn(self.tokens[mark])
            elif self._in_header:
                self._header += piece
            elif self._recipient and self.calls is not None:
                self.calls.argue(piece)
            elif piece:
                if self._new_message and self._is_content in self._said:
                    split[self._is_content] += "\n"
                self._new_message = False
                self._said.add(self._is_content)
                split[self._is_content] += piece
        return Split(reasoning=split[False], content=split[True])

    def flush(self) -> Split:
        # What else is left is a header without its message.
        return Split("", self._header if self._is_first else "")

    def _turn(self, token: str) -> None:
        self._is_first = False
        if token == _CONSTRAIN:  # how the message is written comes, in its header
            self._header += " "
        elif token == _MESSAGE:
            self._is_content = not self._has_channel or _is_answer(self._header)
            self._in_header, self._new_message = False, True
            self._recipient = self._recipient or _function_of(self._header)
            if self._recipient and self.calls is not None:
                self.calls.begin(self._recipient)
        else:  # a channel's name comes, or a message ends, or the next one's role comes
            # Behind a role may stand whom its message is addressed to.
            self._recipient = _function_of(self._header) if token == _CHANNEL else ""
            self._in_header, self._header = True, ""
            self._has_channel = token == _CHANNEL


def _function_of(header: str) -> str:
    """Whom a message with this header calls: "" where it is no function of the request's."""
    found = _FUNCTION.search(header)
    return found[1] if found else ""


def _is_answer(header: str) -> bool:
    channel = header.split()[:1]
    return channel == ["final"] or (channel == ["commentary"] and "to=" not in header)


def _segments(text: str, marks: Marks) -> Iterator[tuple[str, int | None]]:
    """The text between the marks, and the marks, in order."""
    begin = 0
    for place, mark in marks:
        yield text[begin:place], None
        yield "", mark
        begin = place
    yield text[begin:], None


def _begun(text: str, tag: str) -> int:
    """Length of the longest end of `text` that begins `tag`."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if tag.startswith(text[-n:])), 0)
