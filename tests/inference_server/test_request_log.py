"""The request log in SQLite."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from inference_server import request_log
from inference_server.request_log import LogRow, RequestLog, RequestLogError


def row(number: int, **fields: Any) -> LogRow:
    values = {"caller": "ann", "path": "/v1/infer", "block_id": "block-1", "session_id": "s"}
    return LogRow(f"request-{number}", **(values | fields))


def find(log: RequestLog, *arguments: Any) -> list[str]:
    return [one["request_id"] for one in asyncio.run(log.find(*arguments))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "requests.sqlite3"


def test_rows_are_found_by_request_session_and_block(path: Path) -> None:
    log = RequestLog(str(path), 100)
    log.add(row(1, prompt_tokens=7, outcome="ok", first_s=0.5))
    log.add(row(2, caller="bob", session_id="t"))
    assert find(log, "request_id", "request-1", None) == ["request-1"]
    assert find(log, "session_id", "t", None) == ["request-2"]
    assert find(log, "block_id", "block-1", None) == ["request-1", "request-2"]
    assert find(log, "block_id", "block-1", "bob") == ["request-2"]
    assert find(log, "request_id", "' OR 1=1 --", None) == []
    [found] = asyncio.run(log.find("request_id", "request-1", None))
    assert (found["prompt_tokens"], found["first_s"], found["question"]) == (7, 0.5, None)
    log.close()


def test_it_is_bounded_and_survives_a_restart(path: Path) -> None:
    log = RequestLog(str(path), 10)
    for number in range(2000):
        log.add(row(number))
    log.close()
    again = RequestLog(str(path), 10)
    again.add(row(2000))
    kept = [f"request-{number}" for number in range(1991, 2001)]
    assert find(again, "block_id", "block-1", None) == kept
    again.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_locked_database_holds_up_nobody_and_drops_beyond_a_bound(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_log, "MAX_WAITING", 50)
    log = RequestLog(str(path), 1000)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    for number in range(1000):
        log.add(row(number))
    assert holder.in_transaction  # until now: none of them waited for it
    assert log.dropped >= 1000 - 50 - request_log.MAX_BATCH
    holder.execute("ROLLBACK")
    holder.close()
    log.close()
    again = RequestLog(str(path), 1000)
    assert find(again, "request_id", "request-0", None) == ["request-0"]
    again.close()


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestLogError, match="request_log_path"):
        RequestLog(str(tmp_path / "file" / "requests.sqlite3"), 10)
    (tmp_path / "text.sqlite3").write_text("no database" * 100)
    with pytest.raises(RequestLogError, match="not a database"):
        RequestLog(str(tmp_path / "text.sqlite3"), 10)
