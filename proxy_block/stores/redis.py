"""Sessions in Redis or Valkey, shared by the instances of a block."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Iterator

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from contract.specs import SessionsSpec
from proxy_block.session import Exchange, Session, from_text
from proxy_block.stores.interface import SessionUnreadable, StoreUnavailable

ANSWER_TIMEOUT_S = 2.0
# Who finds all connections in use waits for one.
MAX_CONNECTIONS, PLACE_TIMEOUT_S = 64, 5.0
# What a process that dies leaves locked is free after this long.
LEASE_S = 10.0
# Between processes only: within one, requests of a session wait for one another without polling.
POLL_S = 0.02
_RESET_BATCH = 500
# A lease is free, or held with a value that begins with ARGV[2]: of the same seq_no, or one's own.
# That of a server which forgot it is had again.
_HOLD = """
local held = redis.call('GET', KEYS[1])
if held and string.sub(held, 1, #ARGV[2]) ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return 1
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""
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
        self._hold = self._client.register_script(_HOLD)
        self._release = self._client.register_script(_RELEASE)

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
    async def lease(
        self, session_id: str, seq_no: int, *, again: bool = False
    ) -> AsyncIterator[None]:
        """A lock that is renewed as long as it is held.

        Who loses it all the same, stopped for longer than it lasts or taken for dead, is caught by
        the seq_no when it records.
        """
        name, of_seq_no = f"{self._prefix}lock:{session_id}", f"{seq_no}:"
        own = of_seq_no + secrets.token_hex(16)
        with self._failures():
            while True:
                if await self._held(name, own, of_seq_no if again else own):
                    break
                await asyncio.sleep(POLL_S)
        renewing = asyncio.create_task(self._renew(name, own))
        try:
            yield
        finally:
            renewing.cancel()
            with contextlib.suppress(RedisError, OSError):
                await self._release([name], [own])

    async def _held(self, name: str, own: str, passed_over: str) -> bool:
        return bool(await self._hold([name], [own, passed_over, int(LEASE_S * 1000)]))

    async def _renew(self, name: str, own: str) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 3)
            try:
                if not await self._held(name, own, own):
                    log.warning("a session's lease was lost while its request ran")
                    return
            except (RedisError, OSError) as error:
                log.warning("a session's lease could not be renewed: %s", error)

    async def close(self) -> None:
        await self._client.aclose()

    def _key(self, session_id: str) -> str:
        return f"{self._prefix}session:{session_id}"

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise StoreUnavailable(f"the session store {self._spec.url}: {reason}") from error
        except ValueError as error:
            raise SessionUnreadable(f"the session store {self._spec.url}: {error}") from error
