"""One instance of a block: its connections, its load, and whether it answers."""

from __future__ import annotations

import asyncio
import hashlib
import time

from web.upstream import Upstream

# A replica that failed a request is the last choice for this long.
AVOIDED_S = 5.0


class Replica:
    """`in_flight` counts what this process has asked of it and not seen the end of."""

    def __init__(self, block_id: str, url: str, deadline_s: float) -> None:
        self.url = url
        self.upstream = Upstream(f"block {block_id}", url, deadline_s=deadline_s)
        self.in_flight = 0
        self._avoided_until = 0.0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def avoided(self) -> bool:
        return time.monotonic() < self._avoided_until

    def take(self) -> None:
        self.in_flight += 1
        self._idle.clear()

    def release(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    def failed(self) -> None:
        """It could not be reached, broke off, or is draining."""
        self._avoided_until = time.monotonic() + AVOIDED_S

    async def not_ready(self, max_age_s: float = 0.0) -> str:
        """Why it does not serve, "" when it does; an answer of up to `max_age_s` ago will do."""
        reason = await self.upstream.ready(max_age_s)
        if not reason:
            self._avoided_until = 0.0
        return reason

    async def retire(self) -> None:
        """Close its connections when the last request in flight has ended."""
        await self._idle.wait()
        await self.close()

    async def close(self) -> None:
        await self.upstream.close()

    def rank(self, affinity: str) -> bytes:
        """Rendezvous hashing: equal `affinity` orders the same replicas in the same way."""
        return hashlib.blake2b(f"{affinity}\0{self.url}".encode(), digest_size=8).digest()
