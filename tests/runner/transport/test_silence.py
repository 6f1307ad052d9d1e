from __future__ import annotations

import asyncio
import time

import pytest

from runner.transport import silence as silence_module
from runner.transport.silence import Silence

INTERVAL_S, LIMIT_S = 0.02, 0.1


@pytest.fixture(autouse=True)
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence_module, "SILENCE_LIMIT_S", LIMIT_S)


def test_a_silent_peer_is_pinged_and_lost_after_the_limit() -> None:
    pings: list[float] = []
    began = time.monotonic()
    asyncio.run(Silence().outlast(lambda: pings.append(0), INTERVAL_S))
    assert time.monotonic() - began > LIMIT_S
    assert len(pings) >= 2


def test_who_was_held_up_itself_reads_what_was_sent_meanwhile_first() -> None:
    async def body() -> None:
        silence = Silence()

        def hold_up() -> None:
            time.sleep(2 * LIMIT_S)
            # What lies in the socket is read a turn of the loop later.
            asyncio.get_running_loop().call_later(INTERVAL_S / 2, silence.heard)

        asyncio.get_running_loop().call_later(INTERVAL_S / 2, hold_up)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(silence.outlast(lambda: None, INTERVAL_S), 2.5 * LIMIT_S)

    asyncio.run(body())
