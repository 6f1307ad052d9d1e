"""One direction of a data link over TCP, for blocking threads of a stage.

`receive`, `send` and `shutdown` are all that a stage asks of a transport: another one (NCCL between
CUDA devices) would stand beside this class with the same three.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from runner.errors import ProtocolError
from runner.steps import Step
from runner.transport.connection import shut
from runner.transport.frames import (
    HEADER_BYTES,
    ITEM_BYTES,
    Epoch,
    Header,
    Limits,
    Operation,
    decode_header,
)
from runner.transport.silence import SILENCE_LIMIT_S
from runner.transport.step_frame import decode_step


class LinkBroken(ProtocolError):
    """The peer closed, fell silent, or cannot be reached any more."""


class TensorBuffer:
    """Room for one received tensor, used again for later steps once its step has been sent on.

    The memory is touched only as far as tensors fill it.
    """

    def __init__(self, limits: Limits) -> None:
        size = limits.tokens * limits.hidden_size * max(ITEM_BYTES)
        self._memory = memoryview(bytearray(size))

    def room(self, size: int) -> memoryview:
        """Of so many bytes; more than before where limits were raised meanwhile."""
        if size > len(self._memory):
            self._memory = memoryview(bytearray(size))
        return self._memory[:size]


@dataclass(frozen=True, slots=True)
class Frame:
    """A step as it was received. `tensor` is a view of `buffer`, [tokens, hidden size] as bytes."""

    header: Header
    body: bytearray
    step: Step
    tensor: memoryview
    buffer: TensorBuffer


class TcpLink:
    """A proven connection as a data link of one epoch; threads may shut it down at any time."""

    def __init__(self, connection: socket.socket, epoch: Epoch, limits: Limits) -> None:
        connection.setblocking(True)
        seconds = int(SILENCE_LIMIT_S)
        silence = struct.pack("ll", seconds, int((SILENCE_LIMIT_S - seconds) * 1_000_000))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, silence)
        self._connection = connection
        self._epoch, self._limits = epoch, limits
        self._header = bytearray(HEADER_BYTES)

    def accept(self, limits: Limits) -> None:
        """What is within these limits or those before; from any thread."""
        self._limits = self._limits.or_within(limits)

    def receive(self, buffer: TensorBuffer) -> Frame:
        """The next step, its tensor in `buffer`; raises LinkBroken, ProtocolError."""
        while True:
            self._fill(memoryview(self._header))
            header = decode_header(self._header, self._epoch, self._limits)
            if header.operation != Operation.PING:
                break
        body = bytearray(header.body_bytes)
        self._fill(memoryview(body))
        tensor = buffer.room(header.tensor_bytes)
        self._fill(tensor)
        return Frame(header, body, decode_step(header, body, self._limits), tensor, buffer)

    def send(self, front: bytes, tensor: memoryview | None = None) -> None:
        """Header and body, then the tensor's bytes, uncopied; raises LinkBroken."""
        parts = [memoryview(front)] if tensor is None else [memoryview(front), tensor]
        try:
            while parts:
                sent = self._connection.sendmsg(parts)
                while parts and sent >= len(parts[0]):
                    sent -= len(parts.pop(0))
                if sent:
                    parts[0] = parts[0][sent:]
        except OSError as error:
            raise LinkBroken(f"sending failed: {error.strerror or error}") from None

    def shutdown(self) -> None:
        """A receive or send blocked in another thread ends at once."""
        shut(self._connection)

    def close(self) -> None:
        """Free the socket; only once no thread uses it any more."""
        self._connection.close()

    def _fill(self, view: memoryview) -> None:
        try:
            while view:
                count = self._connection.recv_into(view, len(view), socket.MSG_WAITALL)
                if not count:
                    raise LinkBroken("closed by the other end")
                view = view[count:]
        except BlockingIOError:
            raise LinkBroken(f"silent for {SILENCE_LIMIT_S:g} s") from None
        except OSError as error:
            raise LinkBroken(f"receiving failed: {error.strerror or error}") from None
