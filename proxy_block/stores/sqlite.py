"""Sessions in a SQLite file, for the one instance of a block."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

from contract.specs import SessionsSpec
from proxy_block.session import Exchange, Session, from_text
from proxy_block.stores.interface import SessionUnreadable, StoreUnavailable

_SCHEMA = """
CREATE TABLE IF NOT EXISTS session_record (
    session_id TEXT PRIMARY KEY, session TEXT NOT NULL, used_at REAL NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS session_record_by_age ON session_record (used_at);
"""
# Another process has the file only while it takes this one's place.
BUSY_TIMEOUT_S = 5.0
Result = TypeVar("Result")


class SqliteStore:
    """One connection, used by one thread of its own: a slow disk does not hold up the others."""

    def __init__(self, spec: SessionsSpec) -> None:
        """Opens or creates `spec.path`; raises StoreUnavailable."""
        self._spec = spec
        try:
            Path(spec.path).absolute().parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                spec.path, BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            # A turn survives the death of the process; a power cut may cost the last ones.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"sessions.path = {spec.path!r}: {error}") from error
        self._thread = ThreadPoolExecutor(1, "sessions")

    async def not_ready(self) -> str:
        try:
            await self._in_thread(lambda: self._database.execute("SELECT 1 FROM session_record"))
        except StoreUnavailable as error:
            return str(error)
        return ""

    async def read(self, session_id: str) -> Session:
        return await self._in_thread(lambda: self._read(session_id))

    async def record(self, session_id: str, exchange: Exchange) -> None:
        await self._in_thread(lambda: self._record(session_id, exchange))

    async def reset(self, session_id: str | None) -> int:
        statement = "DELETE FROM session_record WHERE ?1 IS NULL OR session_id = ?1"
        return await self._in_thread(
            lambda: self._database.execute(statement, (session_id,)).rowcount
        )

    def lease(
        self,
        _session_id: str,
        _seq_no: int,
        *,
        again: bool = False,  # noqa: ARG002 (the name)
    ) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def close(self) -> None:
        await self._in_thread(self._database.close)
        self._thread.shutdown()

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the session store {self._spec.path}: {error}") from error
        except ValueError as error:
            raise SessionUnreadable(f"the session store {self._spec.path}: {error}") from error

    def _read(self, session_id: str) -> Session:
        row = self._database.execute(
            "SELECT session FROM session_record WHERE session_id = ? AND used_at >= ?",
            (session_id, time.time() - self._spec.max_age_s),
        ).fetchone()
        return from_text(row and row[0])

    def _record(self, session_id: str, exchange: Exchange) -> None:
        now = time.time()
        execute = self._database.execute
        with self._database:
            execute("BEGIN IMMEDIATE")
            execute("DELETE FROM session_record WHERE used_at < ?", (now - self._spec.max_age_s,))
            session = self._read(session_id).after(exchange, self._spec)
            execute(
                "INSERT OR REPLACE INTO session_record VALUES (?, ?, ?)",
                (session_id, session.to_text(), now),
            )
