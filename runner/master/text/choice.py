"""The text of one choice while its tokens arrive: whole characters, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from runner.errors import InvalidField
from runner.master.engine.requests import (
    FINISHED_BY_STOP,
    GenerationRequest,
    PromptEvent,
    TokenEvent,
    finish_reason,
)
from runner.master.text.model_text import ModelText

# Enough ids before the first new one for any decoder to know that a word goes on.
_CONTEXT_TOKENS = 8
_REPLACEMENT = "\ufffd"
# A run of undecodable tokens longer than this is what the model wrote, not a character that is
# still to be completed; only its end (a character has at most 4 bytes) is held back then.
_MAX_UNDECODED_TOKENS = 8
_MAX_INCOMPLETE = 3


@dataclass(frozen=True, slots=True)
class TextRequest:
    """One choice: what the engine gets, and what ends its text.

    `continues_prompt`: the text goes on where the prompt ends (a completion), so that a leading
    space belongs to it; a chat answer begins anew. `index` is the choice's place in the answer.
    `begun` is the text of one that goes on after ids which were delivered before. `marks` are
    special tokens whose places the pieces tell: they give no text.
    """

    generation: GenerationRequest
    stop: tuple[str, ...] = ()
    continues_prompt: bool = False
    index: int = 0
    marks: frozenset[int] = frozenset()
    begun: ChoiceText | None = None

    @property
    def delivered(self) -> Sequence[TextPiece]:
        """The pieces of the ids that were delivered before."""
        return () if self.begun is None else self.begun.delivered


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text that became certain, and the tokens since the last piece. `tokens` counts all so far.

    The last piece of a choice carries its finish_reason. The id that ended a choice counts but
    has no event, nor have those of a stop string: text and log probabilities leave them out. `ids`
    has them all, those since the last piece. `reused` counts the tokens of the prompt that were not
    computed for it. `prompt` are the prompt's ids, where its log
    probabilities were asked for; they come in the first piece. `marks`: where in the text special
    tokens that the request wants to know of stand, and their ids.
    """

    index: int
    text: str
    events: tuple[TokenEvent, ...]
    tokens: int
    finish_reason: str | None = None
    ids: tuple[int, ...] = ()
    prompt: tuple[TokenEvent, ...] = ()
    marks: tuple[tuple[int, int], ...] = ()
    reused: int = 0


class ChoiceText:
    """Detokenises and looks for stop strings, token by token.

    `delivered` are the pieces of what `go_on` took; `finished` is set with the last piece. Whoever
    pushes says how many tokens of the prompt were `reused`.
    """

    def __init__(self, text: ModelText, request: TextRequest) -> None:
        context = request.generation.prompt_ids[-_CONTEXT_TOKENS:]
        self._detokenizer = Detokenizer(text.tokenizer, context if request.continues_prompt else ())
        self._stops = StopStrings(request.stop)
        self._index, self._wanted = request.index, request.marks
        self._tokens = 0
        self._ids: list[int] = []
        # In characters of the whole text: what was decoded, what went out, and where marks stand.
        self._decoded = self._shown = 0
        self._marks: list[tuple[int, int]] = []
        self._events: list[TokenEvent] = []
        self._lengths: list[int] = []
        self.delivered: list[TextPiece] = []
        self.finished = False
        self.reused = 0

    def go_on(self, request: GenerationRequest, ids: Sequence[int]) -> None:
        """Take the ids that were delivered before anything else is pushed.

        Raises InvalidField where they go on after the end of the choice.
        """
        for count, token_id in enumerate(ids, start=1):
            if self.finished:
                rule = f"goes on after the choice's end, which is its id {count - 1}"
                raise InvalidField(f"carry.ids[{self._index}]", f"{len(ids)} ids", rule)
            reason = finish_reason(request, token_id, count)
            if piece := self.push(TokenEvent(token_id, finish_reason=reason)):
                self.delivered.append(piece)
        self._ids.clear()

    def prompt(self, event: PromptEvent) -> TextPiece:
        """What comes before the first token, of a request with echo."""
        self.finished = event.finish_reason is not None
        return TextPiece(
            self._index, "", (), 0, event.finish_reason, prompt=event.ids, reused=self.reused
        )

    def push(self, event: TokenEvent) -> TextPiece | None:
        """The next piece, None while nothing new is certain."""
        self._tokens += 1
        self._ids.append(event.token_id)
        piece = ""
        if event.finish_reason != FINISHED_BY_STOP:
            decoded = self._decode(event.token_id)
            self._events.append(event)
            self._lengths.append(len(decoded))
            piece = self._stops.push(decoded)
        reason = event.finish_reason
        if reason is not None and not self._stops.matched:
            piece += self._stops.push(self._detokenizer.flush())
        if self._stops.matched:
            reason = FINISHED_BY_STOP
            self._drop_events_after(len(piece))
        elif reason is not None:
            piece += self._stops.flush()
        if not piece and reason is None:
            return None
        self.finished = reason is not None
        events, ids = tuple(self._events), tuple(self._ids)
        for taken in (self._events, self._ids, self._lengths):
            taken.clear()
        marks = self._marks_of(len(piece))
        return TextPiece(
            self._index, piece, events, self._tokens, reason, ids, marks=marks, reused=self.reused
        )

    def _decode(self, token_id: int) -> str:
        if token_id not in self._wanted:
            decoded = self._detokenizer.push(token_id)
            self._decoded += len(decoded)
            return decoded
        decoded = self._detokenizer.flush()
        self._decoded += len(decoded)
        self._marks.append((self._decoded, token_id))
        return decoded

    def _marks_of(self, length: int) -> tuple[tuple[int, int], ...]:
        """Those in the next `length` characters, and at their end."""
        begin, self._shown = self._shown, self._shown + length
        marks = tuple((place - begin, mark) for place, mark in self._marks if place <= self._shown)
        del self._marks[: len(marks)]
        return marks

    def _drop_events_after(self, length: int) -> None:
        """Tokens that belong to the stop string wholly have no place in the log probabilities."""
        start = 0
        for position, token_length in enumerate(self._lengths):
            if start >= length:
                del self._events[position:]
                return
            start += token_length


def joined(pieces: Sequence[TextPiece]) -> TextPiece:
    """All pieces of one choice as one."""
    last = pieces[-1]
    text, marks = "", list[tuple[int, int]]()
    for piece in pieces:
        marks += [(len(text) + place, mark) for place, mark in piece.marks]
        text += piece.text
    return TextPiece(
        last.index,
        text,
        tuple(event for piece in pieces for event in piece.events),
        last.tokens,
        last.finish_reason,
        tuple(token_id for piece in pieces for token_id in piece.ids),
        prompt=pieces[0].prompt,
        marks=tuple(marks),
        reused=last.reused,
    )


class Detokenizer:
    """Decodes one request's ids. The pieces joined are the decoding of all ids at once.

    Ids are decoded in a short window: the ids of the last piece, for context (where a decoder
    strips the first token's leading space, the window's first token is never new), and the ids
    that gave no whole character yet. `context` are the last ids of the prompt, when the text
    continues the prompt; special tokens give no text.

    With a byte-fallback vocabulary (Llama 2) ids that end inside a character differ from decoding
    all at once, which turns the whole run of byte tokens into replacement characters: here the
    characters that were whole stay.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = list(context)
        self._sent = len(self._decode().rstrip(_REPLACEMENT))
        self._context_length = len(self._window)

    def push(self, token_id: int) -> str:
        """The text that is certain now and was not before; "" while a character is incomplete."""
        self._window.append(token_id)
        text = self._decode()
        undecoded = len(self._window) - self._context_length
        if not text.endswith(_REPLACEMENT):
            return self._take(text)
        if undecoded <= _MAX_UNDECODED_TOKENS:
            return ""
        trailing = len(text) - len(text.rstrip(_REPLACEMENT))
        certain = max(self._sent, len(text) - min(trailing, _MAX_INCOMPLETE))
        piece, self._sent = text[self._sent : certain], certain
        return piece

    def flush(self) -> str:
        """The rest at the end of generation: an incomplete character as a replacement character."""
        return self._take(self._decode())

    def _take(self, text: str) -> str:
        piece = text[self._sent :]
        if piece:
            # Only ids that gave text are context enough: a window of special tokens decodes to
            # nothing, and the next token would again be the first.
            self._window = self._window[self._context_length :]
            self._context_length = len(self._window)
            self._sent = len(self._decode())
        return piece

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=True)


class Offsets:
    """Where the ids that follow `prompt_ids` begin in a text in which they go on at `start`.

    An id that completes a character, or is a part of one, lies where the character does.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), start: int = 0
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer, prompt_ids[-_CONTEXT_TOKENS:])
        self._next = start

    def push(self, token_id: int) -> int:
        """In characters."""
        offset = self._next
        self._next += len(self._detokenizer.push(token_id))
        return offset


class StopStrings:
    """Looks for stop strings in one request's text.

    Text that may be the beginning of a stop string is held back until it is certain. The result
    does not depend on how the text is cut into pieces: the match that ends first wins, and of
    those that end together the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def push(self, piece: str) -> str:
        """The text that may be shown now; a match sets `matched` and drops the rest."""
        if not self._stops:
            return piece
        text = self._held + piece
        found = min(
            ((start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0),
            default=None,
        )
        if found is not None:
            self.matched, self._held = True, ""
            return text[: found[1]]
        certain = len(text) - self._held_back(text)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was held back, when the text has ended without a match."""
        held, self._held = self._held, ""
        return held

    def _held_back(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = min(len(text), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
