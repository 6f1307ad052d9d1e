"""A store that may be gone for a while: one request waits for it as long as the request may."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from proxy_block.session import Exchange, Session
from proxy_block.stores.interface import SessionStore, SessionUnreadable, StoreUnavailable

POLL_S = 0.25
Result = TypeVar("Result")


class PatientStore:
    """Of one request, whose caller keeps the deadline. `failure` is why it waits, None where it
    does not."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self.failure: StoreUnavailable | None = None

    async def read(self, session_id: str) -> Session:
        """Raises SessionUnreadable."""
        return await self._patiently(lambda: self._store.read(session_id))

    async def record(self, session_id: str, exchange: Exchange) -> None:
        """Raises SessionUnreadable and SeqNoPassed: also where the store recorded it, and failed
        before it said so."""
        await self._patiently(lambda: self._store.record(session_id, exchange))

    @contextlib.asynccontextmanager
    async def lease(self, session_id: str, seq_no: int, *, again: bool) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as held:
            await self._patiently(
                lambda: held.enter_async_context(self._store.lease(session_id, seq_no, again=again))
            )
            yield

    async def _patiently(self, work: Callable[[], Awaitable[Result]]) -> Result:
        while True:
            try:
                result = await work()
            except SessionUnreadable:
                raise
            except StoreUnavailable as error:
                self.failure = error
            else:
                self.failure = None
                return result
            await asyncio.sleep(POLL_S)
