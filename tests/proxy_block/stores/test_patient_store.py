"""Waiting for a SQLite file that another process has, and what is not waited for."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from contract.specs import SessionsSpec
from proxy_block.session import Exchange, SeqNoPassed, Turn
from proxy_block.stores.interface import SessionUnreadable, StoreUnavailable
from proxy_block.stores.patient_store import PatientStore
from proxy_block.stores.sqlite import SqliteStore

TURN = Exchange(1, {"reply": "r"}, (Turn("m", "r", 10),))


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("proxy_block.stores.sqlite.BUSY_TIMEOUT_S", 0.05)
    return tmp_path / "sessions.sqlite3"


async def until_failed(store: PatientStore) -> None:
    async with asyncio.timeout(60):
        while store.failure is None:  # noqa: ASYNC110 (of another thread)
            await asyncio.sleep(0.01)


def test_a_file_that_is_busy_is_waited_for_and_the_turn_recorded_once(path: Path) -> None:
    async def work() -> None:
        store = SqliteStore(SessionsSpec(str(path)))
        patient = PatientStore(store)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.record("s", TURN)
        recording = asyncio.create_task(patient.record("s", TURN))
        await until_failed(patient)
        other.execute("ROLLBACK")
        await recording
        assert patient.failure is None
        with pytest.raises(SeqNoPassed):
            await patient.record("s", TURN)
        assert len((await patient.read("s")).turns) == 1
        other.close()
        await store.close()

    asyncio.run(work())


def test_what_is_no_session_is_not_waited_for(path: Path) -> None:
    async def work() -> None:
        store = SqliteStore(SessionsSpec(str(path)))
        await store.record("s", TURN)
        with sqlite3.connect(path) as other:
            other.execute("UPDATE session_record SET session = '{'")
        other.close()
        for work in (PatientStore(store).read("s"), PatientStore(store).record("s", TURN)):
            with pytest.raises(SessionUnreadable):
                await work
        await store.close()

    asyncio.run(work())


def test_who_stops_waiting_can_say_why(path: Path) -> None:
    async def work() -> None:
        store = SqliteStore(SessionsSpec(str(path)))
        patient = PatientStore(store)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        recording = asyncio.create_task(patient.record("s", TURN))
        await until_failed(patient)
        recording.cancel()
        await asyncio.gather(recording, return_exceptions=True)
        assert "locked" in str(patient.failure)
        other.close()
        await store.close()

    asyncio.run(work())
