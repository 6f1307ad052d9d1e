"""Where requests come in, and wait while the weights are exchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from runner.errors import DeadlineExceeded, EngineFull


class Gate:
    """`entering` counts requests between their passing and their entry in the ledger: their ids
    are those of the tokenizer that was in force when they passed."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.entering = self.waiting = 0

    @property
    def closed(self) -> bool:
        return not self._open.is_set()

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def opened(self, limit_s: float, most: int) -> None:
        """Waits; raises DeadlineExceeded after `limit_s`, EngineFull where `most` wait already."""
        if self.waiting >= most:
            raise EngineFull(f"{most} requests wait while the model is changed: try again later")
        self.waiting += 1
        try:
            async with asyncio.timeout(limit_s):
                await self._open.wait()
        except TimeoutError:
            why = f"not begun within its deadline of {limit_s:g} s: the model is being changed"
            raise DeadlineExceeded(why) from None
        finally:
            self.waiting -= 1

    @contextmanager
    def passing(self) -> Iterator[None]:
        """One request on its way in."""
        self.entering += 1
        try:
            yield
        finally:
            self.entering -= 1
