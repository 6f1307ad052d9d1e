"""Edits of a running stack under requests: processes replaced, seconds away, requests failed.

    python -m benchmarks.edits
    python -m benchmarks.edits --rounds 10      # 20 edits of the model, back and forth

Starts the demo model on two ranks with a proxy block and the inference server as processes of this
machine, and edits it with `splitstack apply` while users ask for short completions: limits, another
model (a random Llama with the demo model's tokenizer) and back, other layers, one rank more and
fewer, the threads of one rank (what its node is in a cluster: another process), a setting, a system
message. `away` is the longest time in which nobody got an answer, `longest wait` that of one
request; the first row is a quiet time. `ahead` says whether every rank had loaded the new weights
before the old ones went, which takes memory for both. All traffic is loopback. The last line is
JSON; the exit code is 1 where a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.hardware import describe_hardware
from benchmarks.random_model import make_random_model
from benchmarks.running_stack import BLOCK, RunningStack
from contract.models import DEMO_MODEL

USERS = 4
TOKENS = 8
DEADLINE_S = 600.0
QUIET_S = 10.0
# With its vocabulary about as many bytes as the demo model has.
OTHER_LAYERS = 4


@dataclass
class Row:
    """One edit; `away_s` is the longest time without an answer to anybody."""

    edit: str
    applied_s: float = 0.0
    loaded_ahead: bool | None = None
    replaced: list[str] = field(default_factory=list)
    longest_wait_s: float = 0.0
    away_s: float = 0.0
    answered: int = 0
    failed: list[str] = field(default_factory=list)


class Users:
    """Ask one after the other until they are told to stop; what came goes into `row`."""

    def __init__(self, url: str, row: Row) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=DEADLINE_S, trust_env=False)
        self.row = row
        self._stop = False
        self._answered_at = time.monotonic()

    async def ask(self) -> None:
        body = {"model": BLOCK, "prompt": "Count: one, two,", "max_tokens": TOKENS}
        while not self._stop:
            began, row = time.monotonic(), self.row
            try:
                answer = await self._client.post("/v1/completions", json=body)
                if answer.status_code != httpx.codes.OK:
                    row.failed.append(f"{answer.status_code}: {answer.text[:200]}")
            except httpx.HTTPError as error:
                row.failed.append(f"{type(error).__name__}: {error}")
            now = time.monotonic()
            row.answered += 1
            row.longest_wait_s = max(row.longest_wait_s, now - began)
            row.away_s = max(row.away_s, now - self._answered_at)
            self._answered_at = now

    async def stop(self) -> None:
        self._stop = True


async def measure(stack: RunningStack, name: str, sets: dict[str, str], users: int) -> Row:
    """One edit from the command to its end, under requests that begin before it and end after."""
    row = Row(name)
    before = await asyncio.to_thread(stack.processes)
    asking = Users(stack.front_url, row)
    async with asyncio.TaskGroup() as group:
        for _ in range(users):
            group.create_task(asking.ask())
        await asyncio.sleep(1)
        began, began_at = time.monotonic(), time.time()
        try:
            if sets:
                await asyncio.to_thread(stack.apply, sets)
            else:
                await asyncio.sleep(QUIET_S)
        finally:
            row.applied_s = time.monotonic() - began
            await asyncio.sleep(1)
            await asking.stop()
    after = await asyncio.to_thread(stack.processes)
    swap = (await asyncio.to_thread(stack.topology))["swap"]
    row.replaced = list(_replaced(before, after))
    if swap is not None and swap["since"] > began_at:
        row.loaded_ahead = all(rank["loaded_ahead"] for rank in swap["ranks"])
    return row


def _replaced(before: dict[str, psutil.Process], after: dict[str, psutil.Process]) -> Iterator[str]:
    """Names of processes; of new ones with a plus, of those that went with a minus."""
    for name in [*after, *(before.keys() - after.keys())]:
        if name not in before:
            yield f"+{name}"
        elif name not in after:
            yield f"-{name}"
        elif before[name].pid != after[name].pid:
            yield name


def edits(other: Path, rounds: int) -> Iterator[tuple[str, dict[str, str]]]:
    model, limit = "common_params.model_name", "common_params.max_concurrent_requests"
    yield "none", {}
    # With the shipped limits the KV of all requests leaves no room for a second model.
    yield "limits", {"common_params.max_model_len": "1024", limit: "8"}
    for _ in range(rounds):
        yield "model", {model: str(other)}
        yield "model, back", {model: DEMO_MODEL}
    yield (
        "layers",
        {"per_rank_params": '[{rank: 0, layers: "0-9"}, {rank: 1, layers: "10-29"}]'},
    )
    yield "layers, back", {"per_rank_params": "[]"}
    yield "ranks, one more", {"nnodes": "3"}
    yield "ranks, one fewer", {"nnodes": "2"}
    other_cores = max(1, len(os.sched_getaffinity(0)) // 2) + 1
    yield "one rank's threads", {"per_rank_params": f"[{{rank: 1, cpu: {other_cores}}}]"}
    yield "a setting", {limit: "16"}
    yield "system message", {"proxy_blocks[0].system_message": "Be brief."}


async def run(stack: RunningStack, other: Path, rounds: int, users: int) -> list[Row]:
    rows = []
    for name, sets in edits(other, rounds):
        rows.append(await measure(stack, name, sets, users))
        print(line(rows[-1]), flush=True)
    return rows


def line(row: Row) -> str:
    """A row of the table."""
    replaced = ", ".join(row.replaced) or "-"
    ahead = {None: "-", True: "yes", False: "no"}[row.loaded_ahead]
    return (
        f"{row.edit:<20} {row.applied_s:8.1f} s {row.away_s:8.2f} s {row.longest_wait_s:10.2f} s "
        f"{row.answered:8} {len(row.failed):7} {ahead:>6}  {replaced}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1, help="edits of the model, there and back")
    parser.add_argument("--users", type=int, default=USERS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="splitstack-edits-") as name:
        folder = Path(name)
        other = folder / "other"
        make_random_model(other, OTHER_LAYERS)
        stack = RunningStack(folder)
        headings = f"{'edit':<20} {'applied':>10} {'away':>10} {'longest wait':>12}"
        print(f"{headings} answered  failed  ahead  replaced")
        try:
            rows = asyncio.run(run(stack, other, given.rounds, given.users))
        finally:
            stack.stop()
    report: dict[str, Any] = {"users": given.users, "edits": [asdict(row) for row in rows]}
    print(json.dumps(report | {"hardware": describe_hardware()}))
    sys.exit(1 if any(row.failed for row in rows) else 0)


if __name__ == "__main__":
    main()
