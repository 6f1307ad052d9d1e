"""Whether a thread that fetches or loads gets on: bytes come, or it computes. Linux."""

from __future__ import annotations

import time
from pathlib import Path

_TICKS = slice(11, 13)  # user and system time, counted behind the name (proc(5), task/TID/stat)


class Stall:
    """One thread's, `thread_id` as the kernel counts. After `limit_s` without a byte it is over."""

    def __init__(self, thread_id: int, limit_s: float) -> None:
        self._folder = Path(f"/proc/self/task/{thread_id}")
        self._limit_s = limit_s
        self._seen: object = None
        self._moved = time.monotonic()

    def over(self, fetched_bytes: int = 0) -> bool:
        """`fetched_bytes` are those that other threads have brought it so far."""
        now, seen = time.monotonic(), (fetched_bytes, self._read_bytes(), self._computed())
        if seen != self._seen:
            self._seen, self._moved = seen, now
        return now - self._moved > self._limit_s

    def _read_bytes(self) -> str:
        """Of all its reads, from the page cache too."""
        return self._line("io").partition("\n")[0]

    def _computed(self) -> list[str]:
        return self._line("stat").rpartition(")")[2].split()[_TICKS]

    def _line(self, name: str) -> str:
        try:
            return (self._folder / name).read_text()
        except OSError:  # it has ended, or the kernel does not count
            return ""
