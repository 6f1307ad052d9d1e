"""Control messages over one proven connection between the master and a stage."""

from __future__ import annotations

import asyncio
import socket

from runner.errors import ProtocolError
from runner.transport.control import LENGTH, MAX_MESSAGE_BYTES, Heartbeat, Message, decode, encode
from runner.transport.silence import PING_INTERVAL_S, Silence


class ControlChannel:
    """Messages over one proven connection; sending never waits, for what is sent is small."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.silence = Silence()

    @classmethod
    async def over(cls, connection: socket.socket) -> ControlChannel:
        return cls(*await asyncio.open_connection(sock=connection))

    def send(self, message: Message) -> None:
        """On a connection that has ended this does nothing: receive() tells."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def receive(self) -> Message:
        """Raises ProtocolError, or OSError where the connection has ended."""
        try:
            (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            if length > MAX_MESSAGE_BYTES:
                raise ProtocolError(f"a control message of {length} bytes")
            message = decode(await self._reader.readexactly(length))
            self.silence.heard()
            return message
        except asyncio.IncompleteReadError:
            raise ConnectionError("the connection ended") from None

    async def keep_alive(self) -> None:
        """Send heartbeats; returns once the other end has fallen silent."""
        await self.silence.outlast(lambda: self.send(Heartbeat()), PING_INTERVAL_S / 2)

    async def flush(self) -> None:
        await self._writer.drain()

    def close(self) -> None:
        """Close once what was sent has left."""
        self._writer.close()

    def abort(self) -> None:
        """Close now; a blocked receive() ends."""
        self._writer.transport.abort()
