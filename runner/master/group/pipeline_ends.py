"""The master's two ends of an epoch's pipeline: to stage 0, and back from the last stage."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from runner.errors import ProtocolError
from runner.steps import Step, StepResult
from runner.transport.dialling import EPOCH_DELAYS_S, BackOff, dial_until_answered
from runner.transport.frames import (
    HEADER_BYTES,
    Epoch,
    Header,
    Limits,
    Operation,
    decode_header,
    encode_ping,
)
from runner.transport.handshake import Hello
from runner.transport.result_frame import decode_result
from runner.transport.silence import PING_INTERVAL_S, SILENCE_LIMIT_S, Silence
from runner.transport.step_frame import encode_step

logger = logging.getLogger(__name__)


class PipelineEnds:
    """One epoch's. `deliver` gets each result, `broken` is called once with the reason."""

    def __init__(
        self,
        epoch: Epoch,
        limits: Limits,
        *,
        deliver: Callable[[StepResult], None],
        broken: Callable[[str], None],
    ) -> None:
        self.epoch = epoch
        self._deliver, self._broken = deliver, broken
        loop = asyncio.get_running_loop()
        self._returning: asyncio.Future[socket.socket] = loop.create_future()
        self._last_stage = FrameReader(epoch, limits, deliver, self._break)
        self._to_first: asyncio.Transport | None = None
        self._from_last: asyncio.Transport | None = None
        self._watching: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def wants_return(self) -> bool:
        return not self._closed and not self._returning.done()

    def accept_return(self, connection: socket.socket) -> None:
        """The last stage's connection, proven for this epoch."""
        if self.wants_return:
            self._returning.set_result(connection)
        else:
            connection.close()

    async def open(self, host: str, port: int, token: bytes, hello: Hello) -> None:
        """Dial stage 0 until it answers, and wait for the return; cancelled by its caller."""
        loop = asyncio.get_running_loop()
        back_off = BackOff(*EPOCH_DELAYS_S)
        connection = await dial_until_answered(host, port, token, hello, back_off, logger.info)
        self._to_first, _ = await loop.create_connection(
            lambda: _Sender(self._break), sock=connection
        )
        returning = await self._returning
        self._from_last, _ = await loop.create_connection(lambda: self._last_stage, sock=returning)
        self._watching = asyncio.create_task(self._watch(self._to_first))

    def accept(self, limits: Limits) -> None:
        """Results within these limits too, from now on."""
        self._last_stage.accept(limits)

    def send(self, step: Step) -> None:
        assert self._to_first is not None
        self._to_first.write(encode_step(step, self.epoch))

    def close(self) -> None:
        """Shut both; `broken` is not called any more."""
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
        for transport in (self._to_first, self._from_last):
            if transport is not None:
                transport.abort()
        if not self._returning.done():
            self._returning.cancel()
        elif self._from_last is None and not self._returning.cancelled():
            self._returning.result().close()

    def _break(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._broken(reason)

    async def _watch(self, to_first: asyncio.Transport) -> None:
        ping = encode_ping(self.epoch)
        await self._last_stage.silence.outlast(lambda: to_first.write(ping), PING_INTERVAL_S)
        self._break(f"the link from the last rank: silent for {SILENCE_LIMIT_S:g} s")


class _Sender(asyncio.Protocol):
    """To stage 0, which never answers on this connection."""

    def __init__(self, broken: Callable[[str], None]) -> None:
        self._broken = broken

    def data_received(self, _data: bytes) -> None:
        self._broken("the link to rank 0: it sent something")

    def connection_lost(self, error: Exception | None) -> None:
        self._broken(f"the link to rank 0: {error or 'closed by the other end'}")


class FrameReader(asyncio.Protocol):
    """Results from the last stage."""

    def __init__(
        self,
        epoch: Epoch,
        limits: Limits,
        deliver: Callable[[StepResult], None],
        broken: Callable[[str], None],
    ) -> None:
        self._epoch, self._limits = epoch, limits
        self._deliver, self._broken = deliver, broken
        self._data = bytearray()
        self._header: Header | None = None
        self._over = False
        self.silence = Silence()

    def accept(self, limits: Limits) -> None:
        """What is within these limits or those before."""
        self._limits = self._limits.or_within(limits)

    def connection_made(self, _transport: asyncio.BaseTransport) -> None:
        self.silence.heard()

    def data_received(self, data: bytes) -> None:
        self.silence.heard()
        self._data += data
        try:
            while not self._over and (result := self._next()) is not None:
                self._deliver(result)
        except ProtocolError as error:
            self._over = True
            self._broken(f"the link from the last rank: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self._over = True
        self._broken(f"the link from the last rank: {error or 'closed by the other end'}")

    def _next(self) -> StepResult | None:
        """The next whole result of what has arrived; pings are passed over."""
        while True:
            if self._header is None:
                if len(self._data) < HEADER_BYTES:
                    return None
                self._header = decode_header(self._data, self._epoch, self._limits)
                del self._data[:HEADER_BYTES]
            size = self._header.body_bytes
            if len(self._data) < size:
                return None
            header, self._header = self._header, None
            body = bytes(self._data[:size])
            del self._data[:size]
            if header.operation == Operation.RESULT:
                return decode_result(header, body, self._limits)
