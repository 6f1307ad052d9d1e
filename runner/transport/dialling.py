"""Connections that we make: proven at both ends, and dialled again until somebody answers."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable

from runner.errors import ProtocolError
from runner.transport.connection import HANDSHAKE_LIMIT_S, prepare
from runner.transport.handshake import Hello, dial_handshake

EPOCH_DELAYS_S = (0.02, 1.0)  # who is dialled for an epoch may not have heard of it yet


class BackOff:
    """Waits between attempts: the first of `first_s`, each twice as long as the one before up to
    `last_s`, a fifth more or less, so that those who failed together do not come together."""

    def __init__(self, first_s: float, last_s: float) -> None:
        self._first_s, self._last_s = first_s, last_s
        self.reset()

    def reset(self) -> None:
        self._next_s = self._first_s

    async def wait(self) -> None:
        delay_s, self._next_s = self._next_s, min(self._last_s, 2 * self._next_s)
        await asyncio.sleep(delay_s * random.uniform(0.8, 1.2))


async def dial_until_answered(
    host: str,
    port: int,
    token: bytes,
    hello: Hello,
    back_off: BackOff,
    complain: Callable[[str], None],
) -> socket.socket:
    """A proven connection, however often it takes; `complain` is told why each attempt failed: no
    connection, or one that was refused by name."""
    while True:
        try:
            return await dial(host, port, token, hello)
        except (OSError, ProtocolError) as error:
            complain(f"{host}:{port}: {error}")
        await back_off.wait()


async def dial(host: str, port: int, token: bytes, hello: Hello) -> socket.socket:
    """A proven connection; raises OSError, Refused, ProtocolError within HANDSHAKE_LIMIT_S."""
    try:
        async with asyncio.timeout(HANDSHAKE_LIMIT_S):
            connection = await _connect(host, port)
            try:
                await dial_handshake(connection, token, hello)
            except BaseException:
                connection.close()
                raise
            return connection
    except TimeoutError:
        raise OSError(f"no answer within {HANDSHAKE_LIMIT_S:g} s") from None


async def _connect(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        try:
            prepare(connection)
            await loop.sock_connect(connection, address)
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError):
                raise
            failure = error
        else:
            return connection
    raise failure
