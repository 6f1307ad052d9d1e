"""Bounds in turns, tokens and age, on a real file."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from proxy_block.session_store import NewTurn, SessionStore, StoreUnavailable
from service.contract import SessionsSpec


def store_at(folder: Path, **bounds: float) -> SessionStore:
    return SessionStore(SessionsSpec(path=str(folder / "sessions.sqlite3"), **bounds))


def messages(store: SessionStore, session_id: str = "s") -> list[str]:
    return [turn.message for turn in store.history(session_id).turns]


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [({"max_turns": 2}, ["3", "4"]), ({"max_tokens": 30}, ["2", "3", "4"]), ({"max_turns": 0}, [])],
)
def test_oldest_turns_go_first(tmp_path: Path, bounds: dict[str, float], kept: list[str]) -> None:
    store = store_at(tmp_path, **bounds)
    for number in range(5):
        store.record("s", "system", NewTurn(str(number), "reply", 10))
    assert messages(store) == kept
    assert store.history("s").system_message == "system"


def test_a_turn_too_big_for_the_bound_empties_the_history(tmp_path: Path) -> None:
    store = store_at(tmp_path, max_tokens=30)
    store.record("s", None, NewTurn("small", "reply", 10))
    store.record("s", None, NewTurn("huge", "reply", 31))
    assert messages(store) == []


def test_old_sessions_are_forgotten(tmp_path: Path) -> None:
    store = store_at(tmp_path, max_age_s=0.05)
    store.record("old", None, NewTurn("m", "r", 1))
    time.sleep(0.06)
    assert messages(store, "old") == []
    store.record("new", None, NewTurn("m", "r", 1))
    assert store.reset(None) == 1


def test_a_turn_after_a_reset_starts_anew(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.record("s", None, NewTurn("before", "r", 1))
    assert store.reset("s") == 1
    store.record("s", None, NewTurn("after", "r", 1))
    assert messages(store) == ["after"]


def test_an_unusable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite3"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreUnavailable, match=r"sessions\.path"):
        SessionStore(SessionsSpec(path=str(path)))
