"""What was asked and how it ended, in SQLite; never texts unless that is switched on.

Written by a thread of its own, so that no request waits for the disk. When the disk does not keep
up, rows are dropped and counted; requests are never refused for it.
GET /logs/{request,session,block}/{id} reads it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from web.errors import ApiError

MAX_WAITING = 10_000
MAX_BATCH = 500
MAX_TEXT = 64 * 1024
MAX_ANSWER_ROWS = 1000
log = logging.getLogger(__name__)

Column = Literal["request_id", "session_id", "block_id"]


@dataclass
class LogRow:
    """One question to one block. Times in seconds, `started` since 1970; tokens None if unknown.

    `outcome` is ok, failed, or cancelled when the client left; `first_s` the time to the first
    event of a stream.
    """

    request_id: str
    caller: str
    path: str
    block_id: str
    session_id: str | None = None
    seq_no: int | None = None
    user: str | None = None
    replica: str = ""
    started: float = 0.0
    first_s: float | None = None
    duration_s: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    outcome: str = ""
    status: int | None = None
    code: str | None = None
    question: str | None = None
    answer: str | None = None


_COLUMNS = tuple(item.name for item in fields(LogRow))
_LISTED = ", ".join(f'"{name}"' for name in _COLUMNS)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS request (
    number INTEGER PRIMARY KEY AUTOINCREMENT, {_LISTED});
CREATE INDEX IF NOT EXISTS request_by_request ON request (request_id);
CREATE INDEX IF NOT EXISTS request_by_session ON request (session_id);
CREATE INDEX IF NOT EXISTS request_by_block ON request (block_id);
"""
_PLACES = ", ".join("?" for _ in _COLUMNS)
_INSERT = f"INSERT INTO request ({_LISTED}) VALUES ({_PLACES})"  # noqa: S608 (columns of ours)


class RequestLogError(Exception):
    """The database cannot be opened or read; the message says which and why."""


class RequestLog:
    """The last `max_rows` rows. `close` writes what still waits."""

    def __init__(self, path: str, max_rows: int) -> None:
        """Opens or creates `path`; raises RequestLogError."""
        self._path, self._max_rows = path, max_rows
        self._waiting: queue.SimpleQueue[LogRow | threading.Event | None] = queue.SimpleQueue()
        self.dropped = 0
        try:
            Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # A power cut may cost the last rows.
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise RequestLogError(f"request_log_path = {path!r}: {error}") from error
        Path(path).chmod(0o600)
        self._writer = threading.Thread(target=self._write_all, args=(database,), daemon=True)
        self._writer.start()

    def add(self, row: LogRow) -> None:
        if self._waiting.qsize() >= MAX_WAITING:
            self.dropped += 1
            return
        self._waiting.put(row)

    async def find(self, column: Column, value: str, caller: str | None) -> list[dict[str, Any]]:
        """The newest MAX_ANSWER_ROWS rows, oldest first, those of `caller` only unless None.

        Raises RequestLogError.
        """
        return await asyncio.to_thread(self._find, column, value, caller)

    def close(self) -> None:
        self._waiting.put(None)
        self._writer.join()

    def _find(self, column: Column, value: str, caller: str | None) -> list[dict[str, Any]]:
        written = threading.Event()
        self._waiting.put(written)  # what was asked before is in the answer
        written.wait(5.0)
        statement = f"""SELECT * FROM (SELECT * FROM request WHERE {column} = ?1
            AND (?2 IS NULL OR caller = ?2) ORDER BY number DESC LIMIT {MAX_ANSWER_ROWS})
            ORDER BY number"""  # noqa: S608 (a column of ours)
        try:
            database = sqlite3.connect(self._path)
            try:
                database.row_factory = sqlite3.Row
                rows = database.execute(statement, (value, caller)).fetchall()
            finally:
                database.close()
        except sqlite3.Error as error:
            raise RequestLogError(f"the request log failed: {error}") from error
        return [{name: row[name] for name in _COLUMNS} for row in rows]

    def _write_all(self, database: sqlite3.Connection) -> None:
        ended = False
        while not ended:
            items = [self._waiting.get()]
            while len(items) < MAX_BATCH and not self._waiting.empty():
                items.append(self._waiting.get())
            ended = None in items
            self._write(database, [item for item in items if isinstance(item, LogRow)])
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()
        database.close()

    def _write(self, database: sqlite3.Connection, rows: Iterable[LogRow]) -> None:
        try:
            database.execute("BEGIN IMMEDIATE")
            with database:
                database.executemany(_INSERT, [astuple(row) for row in rows])
                database.execute(
                    "DELETE FROM request WHERE number <= (SELECT max(number) FROM request) - ?",
                    (self._max_rows,),
                )
        except sqlite3.Error as error:
            log.error("the request log lost rows: %s", error)


_ASKED_BY: dict[str, Column] = {
    "request": "request_id",
    "session": "session_id",
    "block": "block_id",
}


class LogApi:
    """`log` None: this server keeps none."""

    def __init__(self, log: RequestLog | None) -> None:
        self._log = log

    async def read(self, request: Request) -> Response:
        """A key without reads_all_logs sees the requests of its own only."""
        if self._log is None:
            message = "this server keeps no request log (request_log_path is empty)"
            raise ApiError(404, message, code="no_request_log")
        kind, value = request.path_params["kind"], request.path_params["value"]
        if kind not in _ASKED_BY:
            message = f"/logs/{kind[:80]}: must be one of {', '.join(_ASKED_BY)}"
            raise ApiError(404, message, code="not_found")
        caller = request.state.caller
        seen = None if caller.reads_all_logs else caller.name
        try:
            rows = await self._log.find(_ASKED_BY[kind], value, seen)
        except RequestLogError as error:
            raise ApiError(503, str(error), code="request_log_unavailable") from error
        return JSONResponse({"object": "list", _ASKED_BY[kind]: value, "data": rows})

    def routes(self) -> list[Route]:
        return [Route("/logs/{kind}/{value:path}", self.read)]
