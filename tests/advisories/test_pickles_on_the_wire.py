"""Ports between the workers of a model take pickles, from whoever reaches them."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator

import pytest

from runner.errors import ProtocolError
from runner.steps import Segment, Step
from runner.transport.connection import Proven, ProvingListener
from runner.transport.control import decode
from runner.transport.control_channel import ControlChannel
from runner.transport.dialling import dial
from runner.transport.frames import HEADER_BYTES, Epoch, Limits, StepCounts, decode_header
from runner.transport.handshake import NO_EPOCH, Hello, Role
from runner.transport.step_frame import decode_step, encode_step
from tests.advisories.conftest import Trap
from tests.runner.master.serving import group_spec
from web.listener import bind

TOKEN = b"a token of at least 16 bytes"
SPEC_HASH = "00" * 32
EPOCH = Epoch(7, 1)
LIMITS = Limits.of_stage(group_spec(), 0, hidden=16, vocab=1000, positions=512)
LIMIT_S = 30


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[tuple[int, asyncio.Queue[Proven]]]:
    """The listener of master and stages: its port, and what has proven itself."""
    proven: asyncio.Queue[Proven] = asyncio.Queue()
    listener = ProvingListener(bind("127.0.0.1", 0), TOKEN, lambda _: "", proven.put)
    task = asyncio.create_task(listener.serve())
    try:
        yield listener.port, proven
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("padding", [0, 200])
def test_a_pickle_without_proof_ends_the_connection(trap: Trap, padding: int) -> None:
    """Unsafe deserialization before authentication: what comes first on a worker's port is
    unpickled, so that one packet is enough."""

    async def body() -> None:
        async with listening() as (port, proven), asyncio.timeout(LIMIT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(trap.pickled + bytes(padding))
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""  # nothing is answered but the end
            writer.close()
            assert proven.empty()

    asyncio.run(body())


def test_a_pickle_behind_the_proof_is_a_bad_message(trap: Trap) -> None:
    """Unsafe deserialization between workers that trust one another: one of them is enough to have
    all of them."""

    async def body() -> None:
        async with listening() as (port, proven), asyncio.timeout(LIMIT_S):
            hello = Hello(Role.CONTROL, 0, NO_EPOCH, SPEC_HASH)
            connection = await dial("127.0.0.1", port, TOKEN, hello)
            channel = await ControlChannel.over((await proven.get()).connection)
            message = struct.pack(">I", len(trap.pickled)) + trap.pickled
            await asyncio.get_running_loop().sock_sendall(connection, message)
            with pytest.raises(ProtocolError):
                await channel.receive()
            connection.close()

    asyncio.run(body())


def test_a_control_message_is_json(trap: Trap) -> None:
    """The same, at the one function that reads them."""
    with pytest.raises(ProtocolError):
        decode(trap.pickled)


def test_a_frame_is_numbers(trap: Trap) -> None:
    """The same on the data links: tensors and what goes with them are sent as pickled objects."""
    with pytest.raises(ProtocolError):
        decode_header(trap.pickled.ljust(HEADER_BYTES, b"\0"), EPOCH, LIMITS)
    # A whole frame, right up to its sampling parameters.
    frame = encode_step(Step(1, (Segment(1, 0, 2, 5, True),), (3, 4)), EPOCH)
    header = decode_header(frame, EPOCH, LIMITS)
    counts = StepCounts(*header.counts)._replace(admissions=1, admission_bytes=len(trap.pickled))
    told = header._replace(counts=tuple(counts))
    with pytest.raises(ProtocolError):
        decode_step(told, frame[HEADER_BYTES:] + trap.pickled, LIMITS)
