"""Sockets of the group: options, addresses, and a listener that idlers cannot hold up."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from runner.errors import ProtocolError, RunnerError
from runner.transport.handshake import Hello, Refused, accept_handshake
from runner.transport.silence import SILENCE_LIMIT_S

logger = logging.getLogger(__name__)

HANDSHAKE_LIMIT_S = 3.0
MAX_UNPROVEN = 64  # connections that have not proven themselves; the oldest gives way
_SIOCGIFADDR = 0x8915
_REPEAT_AFTER_S = 60.0


class AddressError(RunnerError):
    """A network interface without an address to listen on; the message names it."""


def prepare(connection: socket.socket) -> None:
    """Options of every connection: no delay; a peer that acknowledges nothing is given up."""
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        milliseconds = int(SILENCE_LIMIT_S * 1000)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    connection.setblocking(False)


def interface_address(interface: str) -> str:
    """The IPv4 address of a network interface (netdevice(7)); raises AddressError."""
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError as error:
            known = ", ".join(name for _, name in socket.if_nameindex())
            why = "has no IPv4 address" if error.errno == errno.EADDRNOTAVAIL else "does not exist"
            raise AddressError(
                f"interface = {interface!r}: {why} on this machine, which has {known}; set"
                " nccl_socket_ifname to one of these or leave it empty"
            ) from None
    return socket.inet_ntoa(answer[20:24])


@dataclass(frozen=True, slots=True)
class Proven:
    """A connection whose dialer holds the token; non-blocking, owned by who is given it."""

    connection: socket.socket
    hello: Hello
    peer: str


class ProvingListener:
    """Accepts connections and delivers those that prove themselves.

    At most MAX_UNPROVEN wait for their handshake, each at most HANDSHAKE_LIMIT_S; a new one pushes
    the oldest out, so that connections that say nothing never delay one that does.
    """

    def __init__(
        self,
        listening: socket.socket,
        token: bytes,
        judge: Callable[[Hello], str],
        deliver: Callable[[Proven], Awaitable[None]],
    ) -> None:
        listening.setblocking(False)
        self._listening = listening
        self._token = token
        self._judge, self._deliver = judge, deliver
        self._unproven: dict[asyncio.Task[None], None] = {}
        self._proven: set[asyncio.Task[None]] = set()
        self._refusals = OccasionalLog()

    @property
    def address(self) -> str:
        return str(self._listening.getsockname()[0])

    @property
    def port(self) -> int:
        return int(self._listening.getsockname()[1])

    async def serve(self) -> None:
        """Accept until cancelled; closes the listening socket and what has not proven itself."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    connection, address = await loop.sock_accept(self._listening)
                except OSError as error:  # out of file descriptors, or aborted by the peer
                    logger.warning("cannot accept a connection: %s", error)
                    self._evict_oldest()
                    await asyncio.sleep(0.05)
                    continue
                if len(self._unproven) >= MAX_UNPROVEN:
                    self._evict_oldest()
                task = loop.create_task(self._prove(connection, f"{address[0]}:{address[1]}"))
                self._unproven[task] = None
                task.add_done_callback(self._forget)
        finally:
            self._listening.close()
            for task in [*self._unproven, *self._proven]:
                task.cancel()

    def _evict_oldest(self) -> None:
        oldest = next(iter(self._unproven), None)
        if oldest is not None:
            del self._unproven[oldest]
            oldest.cancel()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._unproven.pop(task, None)
        self._proven.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a connection was lost to a fault of ours", exc_info=task.exception())

    async def _prove(self, connection: socket.socket, peer: str) -> None:
        try:
            prepare(connection)
            async with asyncio.timeout(HANDSHAKE_LIMIT_S):
                hello = await accept_handshake(connection, self._token, self._judge)
        except (ProtocolError, OSError, TimeoutError) as error:
            connection.close()
            told = isinstance(error, Refused)
            self._refusals.log(
                logging.WARNING if told else logging.DEBUG,
                f"refused a connection from {peer.rpartition(':')[0]}: {error or 'said nothing'}",
            )
            return
        except asyncio.CancelledError:
            connection.close()
            raise
        task = asyncio.current_task()
        assert task is not None
        if task not in self._unproven:  # evicted just as it had proven itself
            connection.close()
            return
        del self._unproven[task]
        self._proven.add(task)
        await self._deliver(Proven(connection, hello, peer))


class OccasionalLog:
    """Logs a sentence at most once a minute: peers that are refused dial again every second."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def log(self, level: int, sentence: str) -> None:
        now = time.monotonic()
        if now - self._last.get(sentence, -_REPEAT_AFTER_S) < _REPEAT_AFTER_S:
            return
        if len(self._last) >= 256:
            self._last.clear()
        self._last[sentence] = now
        logger.log(level, "%s", sentence)


def shut(connection: socket.socket) -> None:
    """End a connection from any thread: a receive or send blocked on it returns at once."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
