"""One choice of a chat, taken apart: what the model thought, what it says, what it calls."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from runner.master.api.tools import AskedTools
from runner.master.text.choice import TextPiece, TextRequest
from runner.master.text.model_text import ModelText
from runner.master.text.reasoning import Harmony, Marks, Split, Splitter
from runner.master.text.tools.call_parts import CallPart, CallParts
from runner.master.text.tools.call_text import CallReader

# Digits of an id: those that Mistral's templates insist on, and as many as OpenAI's have.
_SHORT, _USUAL = 9, 24


class ChatPiece(NamedTuple):
    """The new text of each kind, and the new parts of calls."""

    reasoning: str
    content: str
    calls: tuple[CallPart, ...] = ()


def marks_of(text: ModelText, tools: AskedTools | None) -> frozenset[int]:
    """The special tokens whose places a ChatText has to know."""
    marks = text.reasoning.marks if text.reasoning else frozenset[int]()
    return marks | text.calls.marks if text.calls and tools and tools.may_call else marks


class ChatText:
    """Takes the pieces of one choice, in order. `answer` is the id of the whole answer."""

    def __init__(
        self, text: ModelText, request: TextRequest, answer: str, tools: AskedTools | None
    ) -> None:
        self._answer, self._index = answer, request.index
        self._form = text.calls if tools is not None and tools.may_call else None
        self._reader: CallReader | None = None
        self._parts = CallParts(one_only=tools is not None and not tools.is_parallel)
        self._splitter: Splitter | None = None
        if self._form is not None and isinstance(text.reasoning, Harmony):
            self._splitter = text.reasoning.splitter(calls=self._parts)
        elif text.reasoning is not None:
            self._splitter = text.reasoning.splitter(request.generation.prompt_ids)
        if self._form is not None and self._form.family.openings:
            assert tools is not None
            self._reader = CallReader(
                self._form.family,
                self._parts,
                hidden=self._form.special.values(),
                names=tools.names,
            )

    @property
    def has_called(self) -> bool:
        return self._parts.begun > 0

    def push(self, piece: TextPiece) -> ChatPiece:
        """What became certain with it; with the last one all."""
        reasoning, content = self._split(piece)
        if self._reader is not None:
            content = self._reader.push(content)
            if piece.finish_reason is not None:
                content += self._reader.flush()
        return ChatPiece(reasoning, content, self._parts.taken())

    def call_id(self, index: int) -> str:
        """Of the call with this index; the same again where the answer was carried."""
        digest = hashlib.sha256(f"{self._answer}/{self._index}/{index}".encode()).hexdigest()
        if self._form is not None and self._form.family.short_ids:
            return digest[:_SHORT]
        return f"call_{digest[:_USUAL]}"

    def _split(self, piece: TextPiece) -> Split:
        text, marks = piece.text, piece.marks
        if self._form is not None:
            text, marks = _shown(text, marks, self._form.special)
        if self._splitter is None:
            return Split("", text)
        split = self._splitter.push(text, marks)
        if piece.finish_reason is None:
            return split
        rest = self._splitter.flush()
        return Split(split.reasoning + rest.reasoning, split.content + rest.content)


def _shown(
    text: str, marks: Marks, special: Mapping[int, str]
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text with the `special` ones of its marks in it, and the marks that are left."""
    shown, left, begin = "", list[tuple[int, int]](), 0
    for place, mark in marks:
        shown += text[begin:place]
        begin = place
        if mark in special:
            shown += special[mark]
        else:
            left.append((len(shown), mark))
    return shown + text[begin:], tuple(left)
