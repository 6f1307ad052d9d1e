"""The process between a keeper and its engine: when either ends, nothing of the engine is left.

Started as a program by its path, with the standard library alone: PARENT_PID ARGUMENT...
The kernel ends a child with its parent, but not the child's own children; so this process adopts
whatever loses its parent below it (PR_SET_CHILD_SUBREAPER), and ends all of them before itself.
SIGTERM ends them at once, and the kernel sends it when the keeper is gone, however it ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
_PROC, _SHARED = Path("/proc"), "/dev/shm/"  # noqa: S108 (not for files of ours)
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
_LOOK_EACH_S = 0.2
# A file of /dev/shm that is in none of our processes after so many looks is somebody else's.
_LOOKS = 25
# A killed process may take its time to give its memory back.
_GONE_WITHIN_S = 30.0


def main(arguments: list[str]) -> int:
    """The engine's exit code, 128 + the signal where one ended it; 143 where we were told to."""
    parent, command = int(arguments[0]), arguments[1:]
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    if os.getppid() != parent:  # it ended before the call
        return 1
    try:
        child = _start(libc, command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    shared = SharedFiles()
    code = _watch(child, shared)
    _end_all(shared)
    shared.remove()
    return code


class SharedFiles:
    """The files of /dev/shm that our processes have or had in their memory. Who is killed has none
    any more, so that they are looked for as they come. By inode: a semaphore is mapped under
    another name than the one that it gets."""

    def __init__(self) -> None:
        self._others, self._looks = set(self._all()), Counter[int]()
        self._ours: set[int] = set()

    def _all(self) -> dict[int, str]:
        with os.scandir(_SHARED) as files:
            return {file.inode(): file.path for file in files}

    def look(self) -> None:
        """Whose the new ones are."""
        fresh = set(self._all()) - self._others - self._ours
        if not fresh:
            return
        self._ours |= fresh & _mapped(_descendants())
        self._looks.update(fresh - self._ours)
        self._others |= {file for file in fresh if self._looks[file] > _LOOKS}

    def remove(self) -> None:
        """Those that nobody has in memory."""
        gone = self._ours - _mapped(_processes())
        for file, path in self._all().items():
            if file in gone:
                Path(path).unlink(missing_ok=True)


def _start(libc: ctypes.CDLL, command: list[str]) -> int:
    """In a session of its own, so that a signal to its group reaches nobody else."""
    warden = os.getpid()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setsid()
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        try:
            if os.getppid() != warden:
                os._exit(1)
            os.execvp(command[0], command)  # noqa: S606 (no shell is wanted)
        except OSError as error:
            os.write(writer, str(error.errno).encode())
        os._exit(127)
    os.close(writer)
    with os.fdopen(reader) as failure:
        if number := failure.read():
            os.waitpid(child, 0)
            raise OSError(int(number), os.strerror(int(number)))
    return child


def _watch(child: int, shared: SharedFiles) -> int:
    """Until the engine has ended or is to."""
    while True:
        got = signal.sigtimedwait(_SIGNALS, _LOOK_EACH_S)
        shared.look()
        if got is not None and got.si_signo in (signal.SIGTERM, signal.SIGINT):
            return 128 + signal.SIGTERM
        while (ended := _reap()) is not None:
            if ended[0] == child:
                code = os.waitstatus_to_exitcode(ended[1])
                return code if code >= 0 else 128 - code


def _reap() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def _end_all(shared: SharedFiles) -> None:
    """Again and again: what is killed may have started another one meanwhile."""
    deadline = time.monotonic() + _GONE_WITHIN_S
    while (found := _descendants()) and time.monotonic() < deadline:
        shared.look()
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)
        while _reap() is not None:
            continue


def _processes() -> list[int]:
    return [int(item.name) for item in _PROC.iterdir() if item.name.isdecimal()]


def _descendants() -> list[int]:
    """Those that have not been reaped, children of children too."""
    children: dict[int, list[int]] = {}
    for pid in _processes():
        try:
            stat = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
        except OSError:
            continue
        children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(pid)
    found, wanted = [], [os.getpid()]
    while wanted:
        below = children.get(wanted.pop(), [])
        found += below
        wanted += below
    return found


def _mapped(pids: Iterable[int]) -> set[int]:
    """Inodes of /dev/shm in the memory of these processes, as far as we may look."""
    found = set()
    for pid in pids:
        try:
            lines = (_PROC / str(pid) / "maps").read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        for line in lines:
            if _SHARED in line:
                found.add(int(line.split()[4]))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
