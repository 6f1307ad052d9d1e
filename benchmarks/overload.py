"""More requests than can be answered, and clients that vanish."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

import httpx

from benchmarks.running_stack import BLOCK, RunningStack
from benchmarks.streamed_answer import Answer, ask, client_of, percentiles
from runner.stage.process.compute_loop import IDLE_AFTER_S

PLACES = 32 * 5  # max_concurrent_requests of the stack file run, four times as many wait
OVERLOAD, OVERLOAD_S, OVERLOAD_TOKENS = 8, 15, 8
VANISHING, VANISHING_AT_ONCE = 500, 100


async def overload(stack: RunningStack) -> dict[str, float]:
    """As many requests as there are places, running or waiting; then, with all of them taken again,
    OVERLOAD times as many a second as were answered."""
    found: dict[str, float] = {}
    async with client_of(stack.front_url) as client:
        start = time.perf_counter()
        full = await asyncio.gather(*(_short(client, item) for item in range(PLACES)))
        answered_per_s = PLACES / (time.perf_counter() - start)
        arrivals = int(OVERLOAD * answered_per_s * OVERLOAD_S)
        waiting = [asyncio.create_task(_short(client, item)) for item in range(PLACES)]
        while await stack.open_requests() < PLACES:  # noqa: ASYNC110 (over HTTP)
            await asyncio.sleep(0.1)
        for number in range(arrivals):
            waiting.append(asyncio.create_task(_short(client, number)))
            await asyncio.sleep(1 / (OVERLOAD * answered_per_s))
        over = await asyncio.gather(*waiting)
    for name, answers in (("full", full), ("overload", over)):
        good = [item for item in answers if item.status == httpx.codes.OK]
        refused = [item for item in answers if item.status == httpx.codes.TOO_MANY_REQUESTS]
        found |= {
            f"{name}_accepted": len(good),
            f"{name}_refused": len(refused),
            f"{name}_failures": len(answers) - len(good) - len(refused),
            **percentiles(f"{name}_whole_ms", [item.whole_s for item in good]),
        }
        if refused:
            found |= percentiles("refusal_ms", [item.whole_s for item in refused])
    found["answered_per_s"], found["arriving_per_s"] = answered_per_s, OVERLOAD * answered_per_s
    return {key: round(value, 1) for key, value in found.items()}


async def _short(client: httpx.AsyncClient, number: int) -> Answer:
    return await ask(client, BLOCK, number, tokens=OVERLOAD_TOKENS)


async def vanish(stack: RunningStack) -> dict[str, Any]:
    """Clients that hang up after their first token; how long their places stay taken."""
    before, slowest = stack.held(), 0.0
    async with client_of(stack.front_url) as client:
        for first in range(0, VANISHING, VANISHING_AT_ONCE):
            numbers = range(first, first + VANISHING_AT_ONCE)
            work: list[Awaitable[Answer]] = [ask(client, BLOCK, item, 1) for item in numbers]
            await asyncio.gather(*work)
            start = time.perf_counter()
            while await stack.open_requests():  # noqa: ASYNC110 (over HTTP)
                await asyncio.sleep(0.02)
            slowest = max(slowest, time.perf_counter() - start)
    await asyncio.sleep(IDLE_AFTER_S + 2)
    return {
        "clients": VANISHING,
        "slowest_release_s": round(slowest, 3),
        "before": before,
        "after": stack.held(),
    }
