"""Sessions in Redis or Valkey, shared by the instances of a block."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.lock import Lock
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import LockNotOwnedError, RedisError

from contract.specs import SessionsSpec
from proxy_block.session import Exchange, Session, from_text
from proxy_block.stores.interface import StoreUnavailable

ANSWER_TIMEOUT_S = 2.0
# Who finds all connections in use waits for one.
MAX_CONNECTIONS, PLACE_TIMEOUT_S = 64, 5.0
# What a process that dies leaves locked is free after this long.
LEASE_S = 10.0
# Between processes only: within one, requests of a session wait for one another without polling.
POLL_S = 0.02
_RESET_BATCH = 500
# A session is one value, written when it still is what was read. A retry after a lost reply finds
# it changed.
_REPLACE = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
log = logging.getLogger(__name__)


class RedisStore:
    """`namespace` keeps the sessions of blocks that share a server apart."""

    def __init__(self, spec: SessionsSpec, namespace: str, password: str = "") -> None:
        """Connects at the first use; raises StoreUnavailable for a URL that is none."""
        self._spec, self._prefix = spec, f"splitstack:{namespace}:"
        try:
            pool = BlockingConnectionPool.from_url(
                spec.url,
                max_connections=MAX_CONNECTIONS,
                timeout=PLACE_TIMEOUT_S,
                password=password or None,
                socket_timeout=ANSWER_TIMEOUT_S,
                socket_connect_timeout=ANSWER_TIMEOUT_S,
                # Once: a pooled connection may have been closed under us.
                retry=Retry(NoBackoff(), 1),
            )
            self._client = Redis.from_pool(pool)
        except ValueError as error:
            raise StoreUnavailable(f"sessions.url = {spec.url!r}: {error}") from error
        self._replace = self._client.register_script(_REPLACE)

    async def not_ready(self) -> str:
        try:
            with self._failures():
                await self._client.ping()
        except StoreUnavailable as error:
            return str(error)
        return ""

    async def read(self, session_id: str) -> Session:
        with self._failures():
            return from_text(await self._client.get(self._key(session_id)))

    async def record(self, session_id: str, exchange: Exchange) -> None:
        key, age_ms = self._key(session_id), int(self._spec.max_age_s * 1000)
        with self._failures():
            replaced = False
            while not replaced:
                found = await self._client.get(key)
                text = from_text(found).after(exchange, self._spec).to_text()
                replaced = await self._replace([key], [found or b"", text, max(1, age_ms)])

    async def reset(self, session_id: str | None) -> int:
        with self._failures():
            if session_id is not None:
                return int(await self._client.unlink(self._key(session_id)))
            keys = [key async for key in self._client.scan_iter(self._key("*"), _RESET_BATCH)]
            return sum(
                [
                    int(await self._client.unlink(*keys[start : start + _RESET_BATCH]))
                    for start in range(0, len(keys), _RESET_BATCH)
                ]
            )

    @contextlib.asynccontextmanager
    async def lease(self, session_id: str) -> AsyncIterator[None]:
        """A lock that is renewed as long as it is held.

        Who loses it all the same, stopped for longer than it lasts, is caught by the seq_no when it
        records.
        """
        name = f"{self._prefix}lock:{session_id}"
        lock = self._client.lock(name, LEASE_S, sleep=POLL_S, thread_local=False)
        with self._failures():
            await lock.acquire()
        renewing = asyncio.create_task(_renew(lock))
        try:
            yield
        finally:
            renewing.cancel()
            with contextlib.suppress(RedisError, OSError):
                await lock.release()

    async def close(self) -> None:
        await self._client.aclose()

    def _key(self, session_id: str) -> str:
        return f"{self._prefix}session:{session_id}"

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise StoreUnavailable(f"the session store {self._spec.url}: {reason}") from error


async def _renew(lock: Lock) -> Any:
    while True:
        await asyncio.sleep(LEASE_S / 3)
        try:
            await lock.reacquire()
        except LockNotOwnedError:
            log.warning("a session's lease was lost while its request ran")
            return
        except (RedisError, OSError) as error:
            log.warning("a session's lease could not be renewed: %s", error)
