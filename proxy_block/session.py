"""One session: its turns, its system message, and the last answer. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from contract.specs import SessionsSpec


class SeqNoPassed(Exception):
    """The session has answered a request of this seq_no or a later one."""


@dataclass(frozen=True)
class Turn:
    """One message and its reply; `tokens` is what they add to a prompt. `reasoning` is that of the
    reply where the model's template reads it again."""

    message: str
    reply: str
    tokens: int
    reasoning: str = ""


@dataclass(frozen=True)
class Exchange:
    """One answered request: what it adds to its session.

    `answer` is what was put out, `turns` are the chat's new ones, after the `kept` youngest of the
    history, which are all that still fits the model; None keeps every one. `system_message` None
    leaves the session's.
    """

    seq_no: int
    answer: Any
    turns: tuple[Turn, ...] = ()
    kept: int | None = None
    system_message: str | None = None


@dataclass(frozen=True)
class Session:
    """`seq_no` is the last one answered, with `answer`; None before the first."""

    seq_no: int | None = None
    answer: Any = None
    system_message: str | None = None
    turns: tuple[Turn, ...] = ()

    def after(self, exchange: Exchange, bounds: SessionsSpec) -> Session:
        """The session with the exchange recorded, oldest turns beyond the bounds dropped.

        Raises SeqNoPassed: what was generated beside a later request is not written over it.
        """
        if self.seq_no is not None and exchange.seq_no <= self.seq_no:
            raise SeqNoPassed
        history = self.turns
        if exchange.kept is not None:
            history = history[max(0, len(history) - exchange.kept) :]
        system_message = exchange.system_message
        return Session(
            exchange.seq_no,
            exchange.answer,
            self.system_message if system_message is None else system_message,
            _within((*history, *exchange.turns), bounds),
        )

    def to_text(self) -> str:
        """One JSON object, what a store keeps."""
        document = asdict(self)
        for turn in document["turns"]:
            if not turn["reasoning"]:  # a replica of an earlier version knows no such field
                del turn["reasoning"]
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def from_text(text: str | bytes | None) -> Session:
    """What `to_text` gave; None is a session that has not begun. Raises ValueError."""
    if text is None:
        return Session()
    try:
        document = json.loads(text)
        turns = tuple(Turn(**turn) for turn in document.pop("turns"))
        return Session(turns=turns, **document)
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"is no session: {error}") from error


def _within(turns: Sequence[Turn], bounds: SessionsSpec) -> tuple[Turn, ...]:
    """The youngest turns within the bounds: none when even the last one is too big."""
    tokens = count = 0
    for turn in reversed(turns):
        tokens += turn.tokens
        if count == bounds.max_turns or tokens > bounds.max_tokens:
            break
        count += 1
    return tuple(turns[len(turns) - count :])
