"""Control messages that are too long: a reason is cut, anything else ends its connection."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from runner.errors import ProtocolError
from runner.transport.control import (
    MAX_REASON,
    EpochFailed,
    LoadFailed,
    Message,
    Refusal,
    Released,
    decode,
    encode,
)
from runner.transport.control_channel import ControlChannel

LONG = "a tensor: " + "\N{EARTH GLOBE EUROPE-AFRICA}" * 10_000_000


@pytest.mark.parametrize(
    "message", [EpochFailed(3, LONG), LoadFailed("0" * 64, LONG), Refusal(LONG), Released(LONG)]
)
def test_a_reason_of_any_length_can_be_told(message: Message) -> None:
    told = decode(encode(message)[4:])
    assert told == message
    assert LONG.startswith(told.reason[:-1])  # type: ignore[union-attr]
    assert len(told.reason) == MAX_REASON  # type: ignore[union-attr]


def test_a_message_of_ten_megabytes_is_not_read() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        channel = await ControlChannel.over(ours)
        theirs.sendall(struct.pack(">I", 10_000_000) + b"{" * 1000)
        with pytest.raises(ProtocolError, match="10000000 bytes"):
            await channel.receive()
        channel.close()
        theirs.close()

    asyncio.run(run())
