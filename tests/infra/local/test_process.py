from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from infra.local.process import KeptProcess, ProcessDefinition
from tests.waiting import PATIENCE_S, free_ports

SERVER = str(Path(__file__).with_name("small_server.py"))


def definition(tmp_path: Path, *arguments: str, startup_s: float = 30.0) -> ProcessDefinition:
    (port,) = free_ports(1)
    started = ("--started", str(tmp_path / "started"))
    return ProcessDefinition(
        name="small",
        tier="stage",
        command=(sys.executable, SERVER, str(port), *started, *arguments),
        url=f"http://127.0.0.1:{port}",
        log=tmp_path / "small.log",
        startup_s=startup_s,
    )


def run_kept(
    given: ProcessDefinition, body: Callable[[KeptProcess, list[int]], Awaitable[None]]
) -> None:
    """`body` with a kept process and the exit codes it has had so far."""

    async def main() -> None:
        codes: list[int] = []

        def exited(_: KeptProcess, code: int) -> bool:
            codes.append(code)
            return True

        async with httpx.AsyncClient(trust_env=False) as client:
            process = KeptProcess(given, client, exited)
            keeping = asyncio.create_task(process.keep())
            try:
                await body(process, codes)
            finally:
                process.stop(signal.SIGKILL)
                if process.process_id is None:
                    keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(main())


async def until_live(process: KeptProcess) -> int:
    async with asyncio.timeout(PATIENCE_S):
        while not await process.answers("/livez"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert process.process_id is not None
    return process.process_id


async def until_ended(codes: list[int], count: int, limit_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(limit_s):
        while len(codes) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def test_what_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    """As where the disk is full for a while."""
    file = tmp_path / "small.json"
    file.mkdir()

    async def body(process: KeptProcess, codes: list[int]) -> None:
        await until_ended(codes, 1)
        assert process.failure == f"[Errno 21] Is a directory: '{file}'"
        file.rmdir()
        await until_live(process)
        assert (set(codes), process.failure, file.read_text()) == ({1}, "", "{}")

    run_kept(replace(definition(tmp_path), files={str(file): "{}"}), body)


def test_what_dies_is_started_again(tmp_path: Path) -> None:
    async def body(process: KeptProcess, codes: list[int]) -> None:
        first = await until_live(process)
        os.kill(first, signal.SIGKILL)
        await until_ended(codes, 1)
        assert await until_live(process) != first
        assert (codes, process.restarts) == ([-signal.SIGKILL], 1)

    run_kept(definition(tmp_path), body)


def test_what_hangs_is_killed_after_three_probes_and_started_again(tmp_path: Path) -> None:
    async def body(process: KeptProcess, codes: list[int]) -> None:
        first = await until_live(process)
        await asyncio.sleep(1.0)  # so that its startup has been seen
        os.kill(first, signal.SIGSTOP)
        await until_ended(codes, 1)
        assert await until_live(process) != first
        assert codes == [-signal.SIGKILL]

    run_kept(definition(tmp_path), body)


def test_what_never_serves_is_killed_when_its_startup_is_over(tmp_path: Path) -> None:
    given = definition(tmp_path, startup_s=1.0)
    deaf = ProcessDefinition(
        name="deaf",
        tier="stage",
        command=(sys.executable, "-c", "import time; time.sleep(600)"),
        url=given.url,
        log=given.log,
        startup_s=given.startup_s,
    )

    async def body(_: KeptProcess, codes: list[int]) -> None:
        await until_ended(codes, 1)
        assert codes == [-signal.SIGKILL]

    run_kept(deaf, body)


def test_restarts_are_quick_at_first_and_then_back_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.local.process.RESTART_DELAYS_S", (0.0, 0.2, 100.0))

    async def body(process: KeptProcess, codes: list[int]) -> None:
        await until_ended(codes, 3)
        with pytest.raises(TimeoutError):
            await until_ended(codes, 4, 1.0)
        assert process.restarts == 2

    run_kept(definition(tmp_path, "--exit-code", "1"), body)


def test_a_stopped_process_stays_stopped(tmp_path: Path) -> None:
    async def body(process: KeptProcess, codes: list[int]) -> None:
        await until_live(process)
        process.stop(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            while process.process_id is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert codes == []
        assert len((tmp_path / "started").read_text().split()) == 1

    run_kept(definition(tmp_path), body)


def test_output_goes_to_the_log(tmp_path: Path) -> None:
    given = definition(tmp_path, "--exit-code", "2")

    async def body(_: KeptProcess, codes: list[int]) -> None:
        await until_ended(codes, 1)

    run_kept(given, body)
    assert "layers = 3: no such layers" in given.log.read_text()
