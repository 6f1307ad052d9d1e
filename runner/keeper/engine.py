"""One life of this rank's engine: its processes, what they said last, and how they ended."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from runner.keeper import warden
from runner.keeper.command import EngineCommand

logger = logging.getLogger("engine")

_PROGRAM = str(Path(warden.__file__))
_KEPT_LINES, _LONGEST_LINE = 200, 400
_LINE_BYTES = 2**20
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_SHARED = Path("/dev/shm")  # noqa: S108 (the rank's own)
NOT_FOUND = 127


class EngineProcess:
    """`ended` is called with one sentence when the engine ends by itself, not after `stop`.
    `niceness` is added to ours.

    Start it from the main thread: the kernel ends the warden with the thread that made it.
    """

    def __init__(
        self, command: EngineCommand, ended: Callable[[str], None], *, niceness: int = 0
    ) -> None:
        self._command, self._ended, self._niceness = command, ended, niceness
        self._said: deque[str] = deque(maxlen=_KEPT_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Raises OSError where not even the warden can be started."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", _PROGRAM, str(os.getpid()), *self._command.arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(self._command.environment),
            preexec_fn=self._before_exec,
            limit=_LINE_BYTES,
        )
        self._waiting = asyncio.create_task(self._wait(self._process))

    def _before_exec(self) -> None:
        os.setpgid(0, 0)  # what a terminal sends its group reaches the keeper alone
        os.nice(self._niceness)
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    async def stop(self) -> None:
        """Every process of it is gone afterwards."""
        self._stopping = True
        if self._process is not None and self._waiting is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            await asyncio.shield(self._waiting)

    async def _wait(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        relaying = asyncio.create_task(self._relay(process.stdout))
        code = await process.wait()
        # A process that has left the group may hold the pipe.
        await asyncio.wait([relaying], timeout=1)
        relaying.cancel()
        if not self._stopping:
            self._ended(self._how(code))

    async def _relay(self, output: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await output.readline()
            except ValueError:  # longer than a line may be; what follows comes as another
                continue
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                self._said.append(text)
                logger.info("%s", text)

    def _how(self, code: int) -> str:
        program = self._command.arguments[0]
        if code == NOT_FOUND:
            return f"the engine cannot be started: {self.last_words or program}"
        told = f"ended with exit code {code}"
        if code < 0 or code > 128:
            number = -code if code < 0 else code - 128
            told = f"was killed by signal {number}"
        words = self.last_words
        return f"the engine {told}" + (f": {words}" if words else "")

    @property
    def last_line(self) -> str:
        return self._said[-1][:_LONGEST_LINE] if self._said else ""

    @property
    def last_words(self) -> str:
        """The last line that names an error, else the last one that is no warning; "" where it
        said nothing."""
        lines = [line.strip() for line in self._said if "warn" not in line]
        errors = [line for line in lines if _names_error(line)]
        return (errors or lines or [""])[-1][:_LONGEST_LINE]


def _names_error(line: str) -> bool:
    """As a traceback ends; not the tracebacks of those that wait for the one that failed."""
    _, found, said = line.partition("Error: ")
    return bool(found and said) and "Engine core initialization failed" not in line


def clear_shared_memory() -> None:
    """What engines before this one have left, where all of /dev/shm is this rank's."""
    for path in _SHARED.iterdir():
        with contextlib.suppress(OSError):
            path.unlink()
