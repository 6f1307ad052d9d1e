"""The tokens of one request that the engine has entered, from its entry to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from runner.errors import RunnerError
from runner.master.engine.requests import Event


class Tokens(AsyncIterator[Event]):
    """Those that have `arrived`, to the last one; an error that arrived is raised.

    No generator: one that nobody has begun to read could not be told that its reader is gone.
    `leave` is called once, at the end or at `close`. `reused` tells how many tokens of its prompt
    were not computed, from the first event on.
    """

    def __init__(
        self,
        arrived: asyncio.Queue[Event | RunnerError],
        leave: Callable[[], None],
        reused: Callable[[], int] = lambda: 0,
    ) -> None:
        self._arrived, self._leave, self.reused = arrived, leave, reused
        self._closed = False

    async def __anext__(self) -> Event:
        if self._closed:
            raise StopAsyncIteration
        item = await self._arrived.get()
        if isinstance(item, RunnerError):
            self.close()
            raise item
        if item.finish_reason is not None:
            self.close()
        return item

    def close(self) -> None:
        """Frees the request's place at once; later calls change nothing."""
        if not self._closed:
            self._closed = True
            self._leave()
