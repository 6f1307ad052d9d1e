"""A process that does not outlive this one, kept alive as a kubelet keeps a container. Linux.

Restart policy Always, liveness probe.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

PROBE_PERIOD_S = 1.0
PROBE_TIMEOUT_S = 1.0
FAILURE_THRESHOLD = 3
# A kubelet's back-off starts at 10 s; here a person waits.
RESTART_DELAYS_S = (0.0, 1.0, 2.0, 4.0, 8.0, 10.0)
STABLE_AFTER_S = 10.0
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def die_with_parent() -> Callable[[], None]:
    """A preexec_fn: the kernel kills the child when the thread that starts it ends.

    So start children from the main thread only (prctl(2), PR_SET_PDEATHSIG).
    """
    parent = os.getpid()

    def before_exec() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)

    return before_exec


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the process's start, None where it is gone: with the pid, its name.

    Field 22 of /proc/PID/stat (proc(5)); a zombie counts as gone.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    after_name = stat.rpartition(")")[2].split()
    return None if after_name[0] == "Z" else int(after_name[19])


@dataclass(frozen=True)
class ProcessDefinition:
    """What to run; `url` answers /livez and /readyz once the process serves.

    `files` are texts by path, written before each start.
    """

    name: str
    tier: str
    command: tuple[str, ...]
    url: str
    log: Path
    startup_s: float
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def _write(files: Mapping[str, str]) -> None:
    for path, text in files.items():
        Path(path).write_text(text, "utf-8")


# Called with the process and an exit code when it ends; returns whether to start it again.
Exited = Callable[["KeptProcess", int], bool]


class KeptProcess:
    """Runs `keep()` on the event loop of the main thread (see die_with_parent).

    `failure` is why it could not be started the last time, as on a full disk; "" where it could.
    """

    def __init__(
        self, definition: ProcessDefinition, client: httpx.AsyncClient, exited: Exited
    ) -> None:
        self.definition = definition
        self.restarts = 0
        self.process_id: int | None = None
        self.started: int | None = None
        self.failure = ""
        self._client = client
        self._exited = exited
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._delay_index = 0

    async def keep(self) -> None:
        """Start the process and start it again whenever it ends, until it is to stop."""
        while not self._stopping:
            began = time.monotonic()
            self.failure = ""
            try:
                code = await self._run_once()
            except OSError as error:
                code, self.failure = 1, str(error)
            if self._stopping or not self._exited(self, code):
                return
            if time.monotonic() - began > STABLE_AFTER_S:
                self._delay_index = 0
            await asyncio.sleep(RESTART_DELAYS_S[self._delay_index])
            self._delay_index = min(self._delay_index + 1, len(RESTART_DELAYS_S) - 1)
            self.restarts += 1

    def stop(self, number: signal.Signals) -> None:
        """Send the signal; the process is not started again."""
        self._stopping = True
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _run_once(self) -> int:
        definition = self.definition
        _write(definition.files)
        with definition.log.open("ab") as log:
            self._process = process = await asyncio.create_subprocess_exec(
                *definition.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **definition.environment},
                # A group of its own, so that Ctrl-C reaches only us and everything drains in order.
                process_group=0,
                preexec_fn=die_with_parent(),
            )
        self.process_id, self.started = process.pid, start_time(process.pid)
        if self._stopping:  # while the process was being made
            process.terminate()
        probing = asyncio.create_task(self._probe(process))
        try:
            return await process.wait()
        finally:
            probing.cancel()
            self._process = self.process_id = self.started = None

    async def _probe(self, process: asyncio.subprocess.Process) -> None:
        """SIGKILL after three failures in a row: a stopped process does not heed SIGTERM."""
        await self._await_startup(process)
        failures = 0
        while failures < FAILURE_THRESHOLD:
            await asyncio.sleep(PROBE_PERIOD_S)
            failures = 0 if await self.answers("/livez") else failures + 1
        process.kill()

    async def _await_startup(self, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + self.definition.startup_s
        while not await self.answers("/livez"):
            if time.monotonic() > deadline:
                process.kill()
            await asyncio.sleep(PROBE_PERIOD_S / 2)

    async def answers(self, path: str) -> bool:
        """Whether the process answers `path` with success within a second."""
        answer = self._client.get(self.definition.url + path, timeout=PROBE_TIMEOUT_S)
        with contextlib.suppress(httpx.HTTPError, TimeoutError):
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                return (await answer).is_success
        return False
