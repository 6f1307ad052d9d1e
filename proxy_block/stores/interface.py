"""Where sessions are kept: the one interface of SQLite and Redis."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from proxy_block.session import Exchange, Session


class StoreUnavailable(Exception):
    """The store cannot be reached, read or written; the message says which and why."""


class SessionStore(Protocol):
    """Each method raises StoreUnavailable; a session is then as it was or whole, never between."""

    async def not_ready(self) -> str:
        """Why it does not serve, in one sentence; "" when it does."""

    async def read(self, session_id: str) -> Session:
        """An unknown or too old session is an empty one."""

    async def record(self, session_id: str, exchange: Exchange) -> None:
        """Add to the session as it is now: what was reset meanwhile begins anew.

        Raises SeqNoPassed.
        """

    async def reset(self, session_id: str | None) -> int:
        """Forget one session, or all of the block; returns how many there were."""

    def lease(self, session_id: str) -> AbstractAsyncContextManager[None]:
        """The session to oneself among the processes that share the store."""

    async def close(self) -> None: ...
