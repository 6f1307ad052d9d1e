"""What users of the whole stack see, and what the two tiers in front of the master cost.

    python -m benchmarks.users                # about five minutes on 2 cores
    python -m benchmarks.users --loads 16 --rounds 1

Starts `stacks/Pulumi.local.yaml` (the demo model, two ranks) as processes. Concurrent users stream
chat answers through the inference server and straight from the master, in turns. Then more requests
than there are places at once, and clients that vanish after their first token. All traffic is
loopback and bounded. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.engines import free_ports
from benchmarks.hardware import describe_hardware

STACK = Path(__file__).parents[1] / "stacks" / "Pulumi.local.yaml"
BLOCK, DEPLOYMENT = "pytorch-block-3", "local"
ANSWER_TOKENS = 24
ANSWERS_PER_USER = 2
COMPARED_LOAD = 16
RUNNING = 32  # max_concurrent_requests of the stack file
OVERLOAD = 8
VANISHING, VANISHING_AT_ONCE = 500, 100
TOO_MANY = 429


@dataclass
class Answer:
    """One streamed answer; times in seconds. `status` is not 200 where it was refused."""

    status: int = 0
    first_s: float = 0.0
    whole_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    tokens: int = 0


class Stack:
    """`splitstack up --detach` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (port,) = free_ports(1)
        self._splitstack(
            "up", "-s", str(STACK), "--detach", "--set", f"inference_server.node_port={port}"
        )
        status = self.status()
        self.front_url, self.master_url = status["url"], status["master_url"]

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._splitstack("status", "-s", "local", "--json"))
        return found

    def stop(self) -> None:
        self._splitstack("down", "-s", "local", "--now")

    def held(self) -> dict[str, dict[str, int]]:
        """Open files and resident bytes of every process."""
        processes = {row["name"]: psutil.Process(row["pid"]) for row in self.status()["processes"]}
        return {
            name: {"files": process.num_fds(), "resident_bytes": process.memory_info().rss}
            for name, process in processes.items()
        }

    def _splitstack(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "infra.cli", *arguments]
        done = subprocess.run(
            command, cwd=self._folder, capture_output=True, text=True, check=True, timeout=600
        )
        return done.stdout


async def ask(client: httpx.AsyncClient, model: str, number: int, leave_after: int = 0) -> Answer:
    """`leave_after` so many tokens the client hangs up."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Tell me the story of number {number}."}],
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    answer, start = Answer(), time.perf_counter()
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            answer.status = response.status_code
            last = start
            async for line in response.aiter_lines():
                if response.status_code != httpx.codes.OK or not _has_token(line):
                    continue
                now = time.perf_counter()
                if answer.tokens:
                    answer.gaps_s.append(now - last)
                else:
                    answer.first_s = now - start
                last = now
                answer.tokens += 1
                if answer.tokens == leave_after:
                    break
    except httpx.HTTPError:
        answer.status = 0
    answer.whole_s = time.perf_counter() - start
    return answer


def _has_token(line: str) -> bool:
    if not line.startswith("data: {"):
        return False
    choices = json.loads(line[6:]).get("choices") or [{}]
    return bool(choices[0].get("delta", {}).get("content"))


async def serve_users(url: str, model: str, users: int) -> dict[str, float]:
    """Every user asks one question after the other."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def user(number: int) -> list[Answer]:
            numbers = range(number * ANSWERS_PER_USER, (number + 1) * ANSWERS_PER_USER)
            return [await ask(client, model, item) for item in numbers]

        start = time.perf_counter()
        asked = await asyncio.gather(*map(user, range(users)))
        seconds = time.perf_counter() - start
    answers = [answer for answers in asked for answer in answers]
    good = [answer for answer in answers if answer.status == httpx.codes.OK and answer.tokens]
    return {
        "tokens_per_s": sum(answer.tokens for answer in good) / seconds,
        **percentiles("first_ms", [answer.first_s for answer in good]),
        **percentiles("gap_ms", [gap for answer in good for gap in answer.gaps_s]),
        "failures": len(answers) - len(good),
    }


def percentiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"{name}_p{rank}": cuts[rank - 1] * 1e3 for rank in (50, 95, 99)}


def compare_tiers(stack: Stack, loads: Sequence[int], rounds: int) -> dict[str, Any]:
    """Medians over rounds by load, for the front and for the master alone."""
    targets = {"front": (stack.front_url, BLOCK), "master": (stack.master_url, DEPLOYMENT)}
    results: dict[str, Any] = {}
    for load in loads:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in targets}
        for number in range(rounds + 1):
            for name, target in targets.items():
                run = asyncio.run(serve_users(*target, load))
                if number:  # the first round warms up
                    runs[name].append(run)
        results[str(load)] = {
            name: {key: round(statistics.median(run[key] for run in found), 1) for key in found[0]}
            for name, found in runs.items()
        }
        for name, figures in results[str(load)].items():
            print(
                f"{load:3} users, {name:6}", *(f"{key} {value}" for key, value in figures.items())
            )
    return results


async def overload(url: str) -> dict[str, float]:
    """As many requests as run, then OVERLOAD times as many, all at once."""
    found: dict[str, float] = {}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        for name, count in (("full", RUNNING), ("overload", RUNNING * OVERLOAD)):
            answers = await asyncio.gather(*(ask(client, BLOCK, item) for item in range(count)))
            good = [item for item in answers if item.status == httpx.codes.OK]
            refused = [item for item in answers if item.status == TOO_MANY]
            found |= {
                f"{name}_accepted": len(good),
                f"{name}_refused": len(refused),
                f"{name}_failures": len(answers) - len(good) - len(refused),
                **percentiles(f"{name}_whole_ms", [item.whole_s for item in good]),
            }
            if refused:
                found |= percentiles("refusal_ms", [item.whole_s for item in refused])
    return {key: round(value, 1) for key, value in found.items()}


async def vanish(stack: Stack) -> dict[str, Any]:
    """Clients that hang up after their first token; how long their places stay taken."""
    before, slowest = stack.held(), 0.0
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=stack.front_url, timeout=600, limits=limits) as client:
        for first in range(0, VANISHING, VANISHING_AT_ONCE):
            numbers = range(first, first + VANISHING_AT_ONCE)
            work: list[Awaitable[Answer]] = [ask(client, BLOCK, item, 1) for item in numbers]
            await asyncio.gather(*work)
            start = time.perf_counter()
            while await _open_requests(stack.master_url):  # noqa: ASYNC110 (over HTTP)
                await asyncio.sleep(0.02)
            slowest = max(slowest, time.perf_counter() - start)
    return {
        "clients": VANISHING,
        "slowest_release_s": round(slowest, 3),
        "before": before,
        "after": stack.held(),
    }


async def _open_requests(url: str) -> int:
    async with httpx.AsyncClient(base_url=url) as client:
        document = (await client.get("/topology")).json()
    return int(document["requests_running"]) + int(document["requests_waiting"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, nargs="+", default=[1, 4, COMPARED_LOAD, 64])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="splitstack-bench-") as folder:
        stack = Stack(Path(folder))
        try:
            results = {"users": compare_tiers(stack, arguments.loads, arguments.rounds)}
            results["overload"] = asyncio.run(overload(stack.front_url))
            results["vanishing"] = asyncio.run(vanish(stack))
        finally:
            stack.stop()
    print(json.dumps(results | {"rounds": arguments.rounds, "hardware": describe_hardware()}))


if __name__ == "__main__":
    main()
