"""Chat histories in SQLite: complete turns only, bounded in number, tokens and age."""

from __future__ import annotations

import sqlite3
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from service.contract import SessionsSpec

_SCHEMA = """
CREATE TABLE IF NOT EXISTS session (
    session_id TEXT PRIMARY KEY, system_message TEXT, used_at REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS turn (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    session_id TEXT NOT NULL REFERENCES session ON DELETE CASCADE,
    message TEXT NOT NULL, reply TEXT NOT NULL, tokens INTEGER NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS turn_by_session ON turn (session_id, number);
CREATE INDEX IF NOT EXISTS session_by_age ON session (used_at);
"""


class StoreUnavailable(Exception):
    """The database cannot be opened or written; the message says which and why."""


@dataclass(frozen=True)
class Turn:
    """One message and its reply; `tokens` is what the two add to a prompt."""

    number: int
    message: str
    reply: str
    tokens: int


@dataclass(frozen=True)
class NewTurn:
    """A turn to record; turns numbered below `oldest_kept` no longer fit the model."""

    message: str
    reply: str
    tokens: int
    oldest_kept: int = 0


@dataclass(frozen=True)
class History:
    """A session: the system message that it was last given, and its turns, oldest first."""

    system_message: str | None = None
    turns: tuple[Turn, ...] = ()


class SessionStore:
    """One connection, one writer. Its calls take well under a millisecond: no thread is needed."""

    def __init__(self, spec: SessionsSpec) -> None:
        """Opens or creates `spec.path`; raises StoreUnavailable."""
        self._spec = spec
        try:
            Path(spec.path).absolute().parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(spec.path, isolation_level=None)
            # A turn survives the death of the process; a power cut may cost the last ones.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute("PRAGMA foreign_keys = ON")
            self._database.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"sessions.path = {spec.path!r}: {error}") from error

    def close(self) -> None:
        self._database.close()

    def history(self, session_id: str) -> History:
        """An unknown or too old session is an empty one. Raises StoreUnavailable."""
        try:
            return self._history(session_id)
        except sqlite3.Error as error:
            raise _failed(error) from error

    def record(self, session_id: str, system_message: str | None, turn: NewTurn) -> None:
        """Append a turn, then drop the oldest ones beyond the bounds.

        Appended, not replaced: a reset while the turn was generated stays a reset. Raises
        StoreUnavailable; then the history is as it was.
        """
        now = time.time()
        execute = self._database.execute
        try:
            with self._database:
                execute("BEGIN IMMEDIATE")
                execute("DELETE FROM session WHERE used_at < ?", (now - self._spec.max_age_s,))
                execute(
                    "INSERT INTO session VALUES (?1, ?2, ?3) ON CONFLICT (session_id)"
                    " DO UPDATE SET system_message = ?2, used_at = ?3",
                    (session_id, system_message, now),
                )
                execute(
                    "INSERT INTO turn (session_id, message, reply, tokens) VALUES (?, ?, ?, ?)",
                    (session_id, turn.message, turn.reply, turn.tokens),
                )
                oldest = max(turn.oldest_kept, self._oldest_within_bounds(session_id))
                execute(
                    "DELETE FROM turn WHERE session_id = ? AND number < ?", (session_id, oldest)
                )
        except sqlite3.Error as error:
            raise _failed(error) from error

    def reset(self, session_id: str | None) -> int:
        """Forget one session, or all; returns how many there were. Raises StoreUnavailable."""
        statement = "DELETE FROM session WHERE ?1 IS NULL OR session_id = ?1"
        try:
            return self._database.execute(statement, (session_id,)).rowcount
        except sqlite3.Error as error:
            raise _failed(error) from error

    def _history(self, session_id: str) -> History:
        row = self._database.execute(
            "SELECT system_message FROM session WHERE session_id = ? AND used_at >= ?",
            (session_id, time.time() - self._spec.max_age_s),
        ).fetchone()
        if row is None:
            return History()
        rows = self._database.execute(
            "SELECT number, message, reply, tokens FROM turn WHERE session_id = ? ORDER BY number",
            (session_id,),
        )
        return History(row[0], tuple(Turn(*turn) for turn in rows))

    def _oldest_within_bounds(self, session_id: str) -> int:
        """The number of the oldest turn to keep: beyond every turn when none fits."""
        rows = self._database.execute(
            "SELECT number, tokens FROM turn WHERE session_id = ? ORDER BY number DESC",
            (session_id,),
        )
        oldest, tokens = sys.maxsize, 0
        for count, (number, turn_tokens) in enumerate(rows, start=1):
            tokens += turn_tokens
            if count > self._spec.max_turns or tokens > self._spec.max_tokens:
                break
            oldest = number
        return oldest


def _failed(error: sqlite3.Error) -> StoreUnavailable:
    return StoreUnavailable(f"the session store failed: {error}")
