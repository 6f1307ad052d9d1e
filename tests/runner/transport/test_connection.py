from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator

import pytest

from runner.transport import connection, dialling
from runner.transport.connection import (
    MAX_UNPROVEN,
    AddressError,
    Proven,
    ProvingListener,
    interface_address,
    prepare,
)
from runner.transport.dialling import dial
from runner.transport.handshake import NO_EPOCH, Hello, Refused, Role
from web.listener import bind

TOKEN = b"a token of at least 16 bytes"
SPEC_HASH = "00" * 32
HELLO = Hello(Role.CONTROL, 0, NO_EPOCH, SPEC_HASH)
IDLE = 500
LONG_LIMIT_S = 30.0


class Served:
    """A listener on a free port and what it has delivered."""

    def __init__(self) -> None:
        self.proven: list[Proven] = []
        self.listener = ProvingListener(bind("127.0.0.1", 0), TOKEN, lambda _: "", self.deliver)

    async def deliver(self, proven: Proven) -> None:
        self.proven.append(proven)


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[Served]:
    it = Served()
    task = asyncio.create_task(it.listener.serve())
    try:
        yield it
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for proven in it.proven:
            proven.connection.close()


async def dial_it(it: Served, token: bytes = TOKEN) -> socket.socket:
    return await dial("127.0.0.1", it.listener.port, token, HELLO)


def test_idle_connections_do_not_delay_a_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 connections that say nothing, then 500 that say half of a hello."""
    # So long that a join that waits for one of them is told from a slow machine.
    monkeypatch.setattr(connection, "HANDSHAKE_LIMIT_S", LONG_LIMIT_S)

    async def run() -> list[float]:
        took: list[float] = []
        async with served() as it:
            for opening in (b"", b"SPHS"):
                idle = [
                    socket.create_connection(("127.0.0.1", it.listener.port)) for _ in range(IDLE)
                ]
                for one in idle:
                    with contextlib.suppress(OSError):
                        one.send(opening)
                began = time.monotonic()
                (await dial_it(it)).close()
                took.append(time.monotonic() - began)
                for one in idle:
                    one.close()
            assert len(it.proven) == 2
        return took

    assert max(asyncio.run(run())) < LONG_LIMIT_S / 3


def test_the_oldest_unproven_connection_gives_way() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with served() as it:
            idle = []
            for _ in range(MAX_UNPROVEN + 1):
                connection = socket.socket()
                connection.setblocking(False)
                await loop.sock_connect(connection, ("127.0.0.1", it.listener.port))
                idle.append(connection)
            async with asyncio.timeout(60):
                with contextlib.suppress(ConnectionError):
                    assert await loop.sock_recv(idle[0], 1) == b""
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await loop.sock_recv(idle[-1], 1)
            for one in idle:
                one.close()

    asyncio.run(run())


def test_a_wrong_token_is_told_on_both_sides(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with served() as it:
            with pytest.raises(Refused, match="tokens differ"):
                await dial_it(it, b"another token of 16 bytes")
            assert it.proven == []
            # The listener writes its line after its verdict.
            async with asyncio.timeout(60):
                while told not in caplog.text:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    told = "refused a connection from 127.0.0.1: the group tokens differ"
    with caplog.at_level(logging.WARNING):
        asyncio.run(run())


def test_dialling_a_port_that_says_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "HANDSHAKE_LIMIT_S", 0.5)

    async def run() -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as silent,
            pytest.raises(OSError, match=r"no answer within 0\.5 s"),
        ):
            await dial("127.0.0.1", silent.getsockname()[1], TOKEN, HELLO)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_every_connection_has_its_options() -> None:
    with socket.socket() as connection:
        prepare(connection)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 3000


def test_the_address_of_an_interface() -> None:
    assert interface_address("lo") == "127.0.0.1"
    with pytest.raises(AddressError, match=r"interface = 'nope0': does not exist .* has lo"):
        interface_address("nope0")
