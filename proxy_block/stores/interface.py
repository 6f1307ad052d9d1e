"""Where sessions are kept: the one interface of SQLite and Redis."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from proxy_block.session import Exchange, Session


class StoreUnavailable(Exception):
    """The store cannot be reached, read or written; the message says which and why."""


class SessionUnreadable(StoreUnavailable):
    """What is kept under the session's id is no session; a reset makes it one."""


class SessionStore(Protocol):
    """Each method raises StoreUnavailable; a session is then as it was or whole, never between."""

    async def not_ready(self) -> str:
        """Why it does not serve, in one sentence; "" when it does."""

    async def read(self, session_id: str) -> Session:
        """An unknown or too old session is an empty one. Raises SessionUnreadable."""

    async def record(self, session_id: str, exchange: Exchange) -> None:
        """Add to the session as it is now: what was reset meanwhile begins anew.

        Raises SeqNoPassed and SessionUnreadable.
        """

    async def reset(self, session_id: str | None) -> int:
        """Forget one session, or all of the block; returns how many there were."""

    def lease(
        self, session_id: str, seq_no: int, *, again: bool = False
    ) -> AbstractAsyncContextManager[None]:
        """The session to oneself among the processes that share the store.

        `again`: the process that had the same `seq_no` is gone; what it held is taken over. Should
        it live all the same, whoever records later gets SeqNoPassed.
        """

    async def close(self) -> None: ...
