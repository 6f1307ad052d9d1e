"""Bounds and records of one session."""

from __future__ import annotations

from typing import Any

import pytest

from contract.specs import SessionsSpec
from proxy_block.session import Exchange, SeqNoPassed, Session, Turn, from_text


def exchange(seq_no: int, *turns: Turn, kept: int | None = None) -> Exchange:
    return Exchange(seq_no, {"reply": str(seq_no)}, turns, kept, "system")


def after_turns(count: int, **bounds: Any) -> Session:
    session = Session()
    for number in range(count):
        turn = Turn(str(number), "reply", 10)
        session = session.after(exchange(number, turn), SessionsSpec(**bounds))
    return session


def messages(session: Session) -> list[str]:
    return [turn.message for turn in session.turns]


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        ({}, ["0", "1", "2", "3", "4"]),
        ({"max_turns": 2}, ["3", "4"]),
        ({"max_tokens": 30}, ["2", "3", "4"]),
        ({"max_tokens": 39}, ["2", "3", "4"]),
        ({"max_turns": 0}, []),
        ({"max_tokens": 9}, []),
    ],
)
def test_oldest_turns_go_first(bounds: dict[str, int], kept: list[str]) -> None:
    session = after_turns(5, **bounds)
    assert messages(session) == kept
    assert (session.seq_no, session.answer) == (4, {"reply": "4"})
    assert session.system_message == "system"


def test_a_turn_too_big_for_the_bound_empties_the_history() -> None:
    session = after_turns(3, max_tokens=30)
    huge = exchange(9, Turn("huge", "reply", 31))
    assert messages(session.after(huge, SessionsSpec(max_tokens=30))) == []


@pytest.mark.parametrize(("kept", "left"), [(0, ["new"]), (1, ["2", "new"]), (9, [*"012", "new"])])
def test_what_no_longer_fits_the_model_goes(kept: int, left: list[str]) -> None:
    new = exchange(9, Turn("new", "reply", 1), kept=kept)
    assert messages(after_turns(3).after(new, SessionsSpec())) == left


@pytest.mark.parametrize("seq_no", [1, 2])
def test_a_seq_no_is_recorded_once_and_in_order(seq_no: int) -> None:
    with pytest.raises(SeqNoPassed):
        after_turns(3).after(exchange(seq_no), SessionsSpec())


def test_an_exchange_without_turns_leaves_history_and_system_message() -> None:
    session = after_turns(2).after(Exchange(7, {"generated": "x"}), SessionsSpec())
    assert messages(session) == ["0", "1"]
    assert (session.system_message, session.seq_no) == ("system", 7)


def test_text_and_back() -> None:
    session = after_turns(3)
    assert from_text(session.to_text()) == session
    assert from_text(session.to_text().encode()) == session
    assert from_text(None) == Session()


def test_reasoning_is_kept_and_its_field_only_then() -> None:
    assert '"reasoning"' not in after_turns(3).to_text()
    session = after_turns(2).after(exchange(9, Turn("m", "r", 5, "why")), SessionsSpec())
    assert from_text(session.to_text()) == session
    assert session.to_text().count('"reasoning"') == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"turns": 1}', '{"turns": [], "x": 1}', b"\xff"]
)
def test_what_is_no_session(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        from_text(text)
