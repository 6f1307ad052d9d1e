"""How long nothing may move: there is no other limit on how long a model takes."""

from __future__ import annotations

import time


class Stall:
    """`limit_s` seconds in which what is noted stays the same are too many."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._last: object = None
        self._moved_at = time.monotonic()

    def note(self, seen: object) -> None:
        """What is there now."""
        if seen != self._last:
            self._last, self._moved_at = seen, time.monotonic()

    def is_over(self, more_s: float = 0.0) -> bool:
        """Whether nothing has moved for too long; `more_s`: for what may take so much longer."""
        return time.monotonic() - self._moved_at > self.limit_s + more_s
