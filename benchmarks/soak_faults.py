"""Faults of a soak: one process after the other is killed, told to end, or stopped for a while."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass

import psutil

from benchmarks.running_stack import RunningStack

# The inference server holds the clients' own connections: its death is theirs to see.
SPARED = ("inference-server",)
WAYS = ("kill", "kill", "terminate", "stop")
# Below and above what the heartbeats, the steps' limits and the liveness probes allow.
STOPPED_S = (1.0, 8.0)
WARM_S = 300.0


async def put_in(
    stack: RunningStack, choose: random.Random, every_s: float, until: float
) -> Counter[str]:
    """One fault each `every_s` seconds until then (event loop's clock); counted by kind."""
    loop, done = asyncio.get_running_loop(), Counter[str]()
    while loop.time() + every_s < until:
        await asyncio.sleep(every_s)
        processes = await asyncio.to_thread(stack.processes)
        names = sorted(name for name in processes if not name.startswith(SPARED))
        name, way = choose.choice(names), choose.choice(WAYS)
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            await _harm(processes[name].pid, way, choose)
            done[f"{way} {name}"] += 1
    return done


async def _harm(pid: int, way: str, choose: random.Random) -> None:
    if way != "stop":
        os.kill(pid, signal.SIGKILL if way == "kill" else signal.SIGTERM)
        return
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(choose.uniform(*STOPPED_S))
    finally:
        os.kill(pid, signal.SIGCONT)


@dataclass
class _Held:
    """What a process held when it was warm, and now."""

    name: str
    began: float
    warm: tuple[int, int] | None = None
    now: tuple[int, int] = (0, 0)


class Growth:
    """Resident bytes and open files of every process, counted from its own first WARM_S on."""

    def __init__(self, stack: RunningStack, warm_s: float = WARM_S) -> None:
        self._stack, self._warm_s = stack, warm_s
        self._held: dict[int, _Held] = {}

    async def watch(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            with contextlib.suppress(psutil.Error):
                await asyncio.to_thread(self._look)
            await asyncio.sleep(10)

    def _look(self) -> None:
        for name, process in self._stack.processes().items():
            now = time.monotonic()
            held = self._held.setdefault(process.pid, _Held(name, now))
            held.now = (process.memory_info().rss, process.num_fds())
            if held.warm is None and now - held.began >= self._warm_s:
                held.warm = held.now

    def report(self) -> dict[str, dict[str, float]]:
        """Of each process that lived on after it was warm: the one that grew most of its name."""
        grown: dict[str, dict[str, float]] = {}
        for held in self._held.values():
            if held.warm is None:
                continue
            row = {
                "grown_mb": round((held.now[0] - held.warm[0]) / 1e6, 1),
                "more_files": held.now[1] - held.warm[1],
            }
            if held.name not in grown or row["grown_mb"] > grown[held.name]["grown_mb"]:
                grown[held.name] = row
        return grown
