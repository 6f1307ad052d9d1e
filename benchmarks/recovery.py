"""How soon open streams go on when a process behind them is killed.

    python -m benchmarks.recovery --rounds 5

Starts the demo model on two ranks, a proxy block and the inference server as processes of this
machine. In each round each stage, the master and the proxy block is killed once under streams. Two
times are told: until the process that was started in its place is back (a stage: has loaded its
weights), and from then on until every stream has its next token. All traffic is loopback. The last
line is JSON; the exit code is 1 where an answer was not what it is undisturbed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.hardware import describe_hardware
from benchmarks.running_stack import BLOCK, RunningStack

TOKENS = 300
BEGUN = 8  # tokens of each stream before the kill
POLL_S = 0.02
# What answers with success as soon as the process is back.
BACK = {"stage": "/readyz", "master": "/livez", "proxy-block": "/readyz?self"}
# Until the supervisor takes a process for one that keeps running, and starts it again at once.
STEADY_S = 11.0


@dataclass
class Stream:
    """One answer as it comes: its text, and when each part of it came (event loop's clock)."""

    number: int
    text: str = ""
    came_at: list[float] = field(default_factory=list)
    done: bool = False

    async def read(self, client: httpx.AsyncClient) -> None:
        body = {
            "model": BLOCK,
            "prompt": f"Chapter {self.number}. The lighthouse keeper",
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "temperature": 0.8,
            "seed": self.number,
            "stream": True,
        }
        loop = asyncio.get_running_loop()
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    self.done = True
                elif line.startswith("data: {"):
                    choices = json.loads(line.removeprefix("data: ")).get("choices") or [{}]
                    self.text += choices[0].get("text", "")
                    self.came_at.append(loop.time())


@dataclass(frozen=True)
class Recovery:
    """Seconds from the kill until the process was back, and from then until all streams went on."""

    back_s: float
    after_s: float


class Rounds:
    """`expected` are the undisturbed texts; `wrong` counts those that differ."""

    def __init__(self, stack: RunningStack, client: httpx.AsyncClient, streams: int) -> None:
        self._stack, self._client, self._streams = stack, client, streams
        self._expected: list[str] = []
        self.wrong = 0

    async def learn(self) -> None:
        self._expected = [stream.text for stream in await self._ask(None)]

    async def kill(self, name: str) -> Recovery:
        """Raises RuntimeError where the answers ended before the kill."""
        row = next(row for row in self._stack.status()["processes"] if row["name"] == name)
        url, tier = row["url"], row["tier"]
        found: list[tuple[float, float]] = []

        async def fault() -> None:
            loop = asyncio.get_running_loop()
            self._stack.processes()[name].kill()
            killed_at = loop.time()
            async with httpx.AsyncClient(trust_env=False, timeout=1.0) as asking:
                while not await _answers(asking, url + BACK[tier]):  # noqa: ASYNC110 (of a process)
                    await asyncio.sleep(POLL_S)
            found.append((killed_at, loop.time()))

        streams = await self._ask(fault)
        texts = [stream.text for stream in streams]
        self.wrong += sum(
            text != wanted for text, wanted in zip(texts, self._expected, strict=True)
        )
        [(killed_at, back_at)] = found
        went_on = [min(at for at in stream.came_at if at > back_at) for stream in streams]
        return Recovery(back_at - killed_at, max(went_on) - back_at)

    async def _ask(self, fault: Callable[[], Awaitable[None]] | None) -> list[Stream]:
        streams = [Stream(number) for number in range(self._streams)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(stream.read(self._client)) for stream in streams]
            if fault is not None:
                while any(len(one.came_at) < BEGUN for one in streams):  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
                if any(task.done() for task in tasks):
                    raise RuntimeError("an answer had ended before the kill")
                await fault()
        return streams


async def _answers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).is_success
    except httpx.HTTPError:
        return False


async def measure(stack: RunningStack, rounds: int, streams: int) -> dict[str, Any]:
    """Each process is killed once a round; the report."""
    names = [name for name in stack.processes() if name != "inference-server"]
    found: defaultdict[str, list[Recovery]] = defaultdict(list)
    async with httpx.AsyncClient(base_url=stack.front_url, timeout=300) as client:
        asking = Rounds(stack, client, streams)
        await asking.learn()
        for number in range(rounds):
            for name in names:
                await asyncio.sleep(STEADY_S)
                recovery = await asking.kill(name)
                found[name].append(recovery)
                print(
                    f"{number} {name}: back after {recovery.back_s:.2f} s, streams"
                    f" {recovery.after_s:.2f} s later",
                    flush=True,
                )
    return {
        "rounds": rounds,
        "streams": streams,
        "wrong": asking.wrong,
        "killed": {name: _figures(recoveries) for name, recoveries in found.items()},
    }


def _figures(recoveries: list[Recovery]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name in ("back_s", "after_s"):
        values = [getattr(recovery, name) for recovery in recoveries]
        figures |= {
            f"{name}_p50": round(statistics.median(values), 2),
            f"{name}_max": round(max(values), 2),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="splitstack-recovery-") as folder:
        stack = RunningStack(Path(folder))
        try:
            report = asyncio.run(measure(stack, given.rounds, given.streams))
        finally:
            stack.stop()
    print(json.dumps(report | {"hardware": describe_hardware()}))
    sys.exit(1 if report["wrong"] else 0)


if __name__ == "__main__":
    main()
