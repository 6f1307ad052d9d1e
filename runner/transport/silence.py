"""When a peer is lost: who lives says something every second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

SILENCE_LIMIT_S = 3.0  # a peer that sends nothing for so long, pings included, is lost
PING_INTERVAL_S = 1.0


class Silence:
    """One peer's, since it was last heard."""

    def __init__(self) -> None:
        self.heard()

    def heard(self) -> None:
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._since

    async def outlast(self, ping: Callable[[], None], interval_s: float) -> None:
        """Ping each `interval_s`; returns once the peer has been silent for SILENCE_LIMIT_S.

        A turn in which this process was held up itself does not count: what was sent meanwhile is
        read first.
        """
        while True:
            ping()
            before = time.monotonic()
            await asyncio.sleep(interval_s)
            held_up = time.monotonic() - before > 2 * interval_s
            if not held_up and self.seconds > SILENCE_LIMIT_S:
                return
