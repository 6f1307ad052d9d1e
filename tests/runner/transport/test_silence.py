from __future__ import annotations

import asyncio

import pytest

from runner.transport import silence as silence_module
from runner.transport.silence import PING_INTERVAL_S, SILENCE_LIMIT_S, Silence
from tests.virtual_time import VirtualLoop, run_in_virtual_time


def test_a_silent_peer_is_pinged_and_lost_after_the_limit() -> None:
    pings: list[float] = []

    async def body() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await Silence().outlast(lambda: pings.append(loop.time() - began), PING_INTERVAL_S)
        assert SILENCE_LIMIT_S < loop.time() - began <= SILENCE_LIMIT_S + PING_INTERVAL_S

    run_in_virtual_time(body, silence_module)
    assert pings == [0, 1, 2, 3]


def test_who_was_held_up_itself_reads_what_was_sent_meanwhile_first() -> None:
    async def body() -> None:
        silence, loop = Silence(), asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)

        def hold_up() -> None:
            loop.hold_up(2 * SILENCE_LIMIT_S)
            # What lies in the socket is read a turn of the loop later.
            loop.call_later(PING_INTERVAL_S / 2, silence.heard)

        loop.call_later(PING_INTERVAL_S / 2, hold_up)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(
                silence.outlast(lambda: None, PING_INTERVAL_S), 2.5 * SILENCE_LIMIT_S
            )

    run_in_virtual_time(body, silence_module)
