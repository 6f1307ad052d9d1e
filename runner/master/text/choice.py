"""The text of one choice while its tokens arrive."""

from __future__ import annotations

from dataclasses import dataclass

from runner.master.engine.requests import FINISHED_BY_STOP, GenerationRequest, TokenEvent
from runner.master.text.detokenizer import Detokenizer
from runner.master.text.model_text import ModelText
from runner.master.text.stop_strings import StopStrings

# Enough ids before the first new one for any decoder to know that a word goes on.
_CONTEXT_TOKENS = 8


@dataclass(frozen=True, slots=True)
class TextRequest:
    """One choice: what the engine gets, and what ends its text.

    `continues_prompt`: the text goes on where the prompt ends (a completion), so that a leading
    space belongs to it; a chat answer begins anew. `index` is the choice's place in the answer.
    """

    generation: GenerationRequest
    stop: tuple[str, ...] = ()
    continues_prompt: bool = False
    index: int = 0


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text that became certain, and the tokens since the last piece. `tokens` counts all so far.

    The last piece of a choice carries its finish_reason. The id that ended a choice counts but
    has no event: text and log probabilities leave it out.
    """

    index: int
    text: str
    events: tuple[TokenEvent, ...]
    tokens: int
    finish_reason: str | None = None


class ChoiceText:
    """Detokenises and looks for stop strings, token by token."""

    def __init__(self, text: ModelText, request: TextRequest) -> None:
        context = request.generation.prompt_ids[-_CONTEXT_TOKENS:]
        self._detokenizer = Detokenizer(text.tokenizer, context if request.continues_prompt else ())
        self._stops = StopStrings(request.stop)
        self._index = request.index
        self._tokens = 0
        self._events: list[TokenEvent] = []
        self._lengths: list[int] = []

    def push(self, event: TokenEvent) -> TextPiece | None:
        """The next piece, None while nothing new is certain."""
        self._tokens += 1
        piece = ""
        if event.finish_reason != FINISHED_BY_STOP:
            decoded = self._detokenizer.push(event.token_id)
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
        events = tuple(self._events)
        self._events.clear()
        self._lengths.clear()
        return TextPiece(self._index, piece, events, self._tokens, reason)

    def _drop_events_after(self, length: int) -> None:
        """Tokens that belong to the stop string wholly have no place in the log probabilities."""
        start = 0
        for position, token_length in enumerate(self._lengths):
            if start >= length:
                del self._events[position:]
                return
            start += token_length
