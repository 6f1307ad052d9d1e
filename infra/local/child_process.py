"""Processes that do not outlive this one, whatever ends it. Linux."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path

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
