"""Minutes of requests through every tier, some left midway: nothing changes, nothing grows."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.streams import Stream, make_bodies, run_streams
from tests.e2e.whole_stack import BLOCK, WholeStack

SOAK_S = float(os.environ.get("SPLITSTACK_SOAK_S", "600"))
pytestmark = [pytest.mark.long, pytest.mark.timeout(SOAK_S + 600)]
STREAMS = 6
NEW_TOKENS = 24
# Caches are filled and allocators have their arenas.
WARM_ROUNDS = 5
GROWTH = 1.1
GROWTH_BYTES = 32 * 2**20


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeStack]:
    with WholeStack(tmp_path_factory.mktemp("soak")) as stack:
        yield stack


def resident(processes: list[psutil.Process]) -> dict[str, int]:
    """Bytes by what the process is; one that ended raises."""
    return {
        f"{' '.join(process.cmdline()[1:5])} ({process.pid})": process.memory_info().rss
        for process in processes
    }


async def leave_midway(url: str, body: dict[str, Any]) -> None:
    """A client that hangs up after the first bytes."""
    async with (
        httpx.AsyncClient(base_url=url, timeout=180) as client,
        client.stream("POST", "/v1/completions", json=body | {"max_tokens": 500}) as answer,
    ):
        async for _ in answer.aiter_bytes():
            return


async def one_round(url: str) -> list[Stream]:
    bodies = [body | {"model": BLOCK} for body in make_bodies(STREAMS, NEW_TOKENS)]
    streams, _ = await asyncio.gather(run_streams(url, bodies), leave_midway(url, bodies[0]))
    return streams


def test_nothing_changes_and_nothing_grows(stack: WholeStack) -> None:
    processes = psutil.Process().children(recursive=True)
    ends = time.monotonic() + SOAK_S
    first, warm, rounds = [], {}, 0
    while rounds <= WARM_ROUNDS or time.monotonic() < ends:
        streams = asyncio.run(one_round(stack.url))
        assert [stream.error for stream in streams] == [None] * STREAMS, f"round {rounds}"
        texts = [stream.text for stream in streams]
        first = first or texts
        assert texts == first, f"round {rounds}"
        rounds += 1
        if rounds == WARM_ROUNDS:
            warm = resident(processes)
    grown = {
        name: (warm[name], now)
        for name, now in resident(processes).items()
        if now > GROWTH * warm[name] + GROWTH_BYTES
    }
    assert grown == {}, f"after {rounds} rounds"
