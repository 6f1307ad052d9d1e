"""The requests that are open at the engine, and those that wait to get there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from runner.errors import RunnerError
from runner.master.engine.gate import Gate


class OpenRequests:
    """As RequestHolder; `count` are at the engine. Whoever enters gets a future that is done when
    its request is to end with an error."""

    def __init__(self) -> None:
        self.gate = Gate()
        self._open: set[asyncio.Future[RunnerError]] = set()
        self._returned = asyncio.Event()

    @property
    def count(self) -> int:
        return len(self._open)

    @contextmanager
    def entered(self) -> Iterator[asyncio.Future[RunnerError]]:
        """While one is at the engine."""
        ends: asyncio.Future[RunnerError] = asyncio.get_running_loop().create_future()
        self._open.add(ends)
        try:
            yield ends
        finally:
            self._open.discard(ends)

    def returned(self) -> None:
        """The engine serves again: wake who waits for it."""
        self._returned.set()
        self._returned = asyncio.Event()

    async def until_returned(self, limit_s: float) -> None:
        """Until then, `limit_s` at most."""
        waiting = self._returned
        try:
            await asyncio.wait_for(waiting.wait(), limit_s)
        except TimeoutError:
            return

    # As an exchange of weights sees it

    def requests_wait(self, waits: bool) -> None:
        if waits:
            self.gate.close()
        else:
            self.gate.open()

    def must_be_waited_for(self, in_time: bool) -> bool:
        return self.gate.entering > 0 or (in_time and bool(self._open))

    def end_open(self, error: RunnerError) -> None:
        for ends in self._open:
            if not ends.done():
                ends.set_result(error)
