"""Keeps a set of processes running until it is told to stop: the kubelet of one machine."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from infra.local.process import PROBE_TIMEOUT_S, KeptProcess, ProcessDefinition
from infra.local.processes import TIERS
from infra.local.progress import Progress

EXIT_USAGE = 2
# A process that ends this often before the stack was ever ready will not do better.
STARTS_BEFORE_READY = 5
# Each look goes through every tier behind; a stack that is up is not to spend its time on it.
_READY_PERIOD_S, _NOT_READY_PERIOD_S = 1.0, 0.25
_DRAIN_MARGIN_S = 10.0
_LOG_TAIL_BYTES = 8192


class Supervisor:
    """`run()` returns the exit code. `changed(phase, reason)` is called when either changes."""

    def __init__(
        self,
        definitions: Sequence[ProcessDefinition],
        progress: Progress,
        changed: Callable[[str, str], None],
        *,
        startup_s: float,
        drain_s: float,
        summary: str,
    ) -> None:
        self._definitions = definitions
        self._progress = progress
        self._changed = changed
        self._startup_s, self._drain_s = startup_s, drain_s
        self._summary = summary
        self.processes: list[KeptProcess] = []
        self._tasks: dict[KeptProcess, asyncio.Task[None]] = {}
        self._stop, self._stop_now = asyncio.Event(), asyncio.Event()
        self._been_ready = False
        self._failure = ""
        self._exit_code = 0
        self._shown: tuple[object, ...] = ()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        async with httpx.AsyncClient(trust_env=False) as client:
            self.processes = [KeptProcess(item, client, self._exited) for item in self._definitions]
            self._tasks = {item: asyncio.create_task(item.keep()) for item in self.processes}
            try:
                await self._watch(client)
                if self._failure:
                    self._stop_now.set()
                await self._drain()
            finally:
                await self._end_all()
        self._progress.done()
        if self._failure:
            self._changed("failed", self._failure)
            self._progress.say(f"error: {self._failure}")
        return self._exit_code

    def _on_signal(self) -> None:
        (self._stop_now if self._stop.is_set() else self._stop).set()

    def _exited(self, process: KeptProcess, code: int) -> bool:
        name, log = process.definition.name, process.definition.log
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hopeless = code == EXIT_USAGE or process.restarts + 1 >= STARTS_BEFORE_READY
        if not self._been_ready and hopeless:
            self._fail(f"{name} {how}: {last_words(log)} (log: {log})", code)
            return False
        self._progress.say(f"{name} {how}; it is started again")
        return True

    def _fail(self, reason: str, code: int = 1) -> None:
        if not self._failure:
            self._failure, self._exit_code = reason, EXIT_USAGE if code == EXIT_USAGE else 1
        self._stop.set()

    async def _watch(self, client: httpx.AsyncClient) -> None:
        """Until told to stop: is everything ready, and what is it waiting for."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._startup_s
        while not self._stop.is_set():
            answers = [await _readiness(client, item) for item in self._definitions]
            reasons = [answer for answer in answers if answer]
            self._note("" if not reasons else reasons[0])
            if reasons and not self._been_ready and loop.time() > deadline:
                self._fail(f"not ready within {self._startup_s:g} s: {reasons[0]}")
            period_s = _NOT_READY_PERIOD_S if reasons else _READY_PERIOD_S
            try:
                await asyncio.wait_for(self._stop.wait(), period_s)
            except TimeoutError:
                pass

    def _note(self, reason: str) -> None:
        """Tell what has changed since the last time."""
        processes = tuple((item.process_id, item.restarts) for item in self.processes)
        if (shown := (reason, processes)) == self._shown:
            return
        self._shown = shown
        if reason:
            self._changed("not ready" if self._been_ready else "starting", reason)
            self._progress.wait_for(f"waiting: {reason}")
            return
        self._progress.done()
        self._progress.say("ready again" if self._been_ready else self._summary)
        self._been_ready = True
        self._changed("ready", "")  # last: `up --detach` goes when it reads this, with the summary

    async def _drain(self) -> None:
        """Tier by tier from the front, each for as long as its requests may take."""
        self._changed("draining", self._failure)
        if not self._failure:
            self._progress.wait_for("finishing what is running; once more stops it now")
        for tier in TIERS:
            tasks: list[asyncio.Task[None]] = []
            for process in self.processes:
                if process.definition.tier == tier:
                    process.stop(signal.SIGTERM)
                    tasks.append(self._tasks[process])
            if tasks and not self._stop_now.is_set():
                now = asyncio.create_task(self._stop_now.wait())
                ended = asyncio.create_task(asyncio.wait(tasks))
                first: set[asyncio.Task[Any]] = {now, ended}
                limit = self._drain_s + _DRAIN_MARGIN_S
                await asyncio.wait(first, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
                now.cancel()
                ended.cancel()

    async def _end_all(self) -> None:
        for process, task in self._tasks.items():
            process.stop(signal.SIGKILL)
            if process.process_id is None:
                task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


async def _readiness(client: httpx.AsyncClient, definition: ProcessDefinition) -> str:
    """ "" where ready, else the reason in the process's own words."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            answer = await client.get(definition.url + "/readyz", timeout=PROBE_TIMEOUT_S)
    except (httpx.HTTPError, TimeoutError):
        return f"{definition.name} does not answer yet"
    if answer.is_success:
        return ""
    try:
        reason = answer.json()["reason"]
    except (ValueError, KeyError, TypeError):
        reason = f"/readyz answers {answer.status_code}"
    return f"{definition.name}: {reason}"


def last_words(log: Path) -> str:
    """The last line of a log, the message alone where it is a JSON line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").split("\n")
    line = next((item.strip() for item in reversed(lines) if item.strip()), "it said nothing")
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return line
