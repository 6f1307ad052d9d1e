"""Random users and a random fault every 20 s: what they see, and what grows.

    python -m benchmarks.soak --minutes 30
    python -m benchmarks.soak --minutes 5 --every 0     # no faults

Starts the demo model on two ranks, two proxy blocks and an inference server as processes of this
machine. Users chat, complete, go on in sessions, send graphs, hang up, and send nonsense; texts
that can be are compared with those of a quiet moment. Who is told to come again (503 with
Retry-After) does, and counts as refused. Meanwhile stages, master and proxy blocks are killed, told
to end, or stopped for some seconds. All traffic is loopback. The last line is JSON; the exit code
is 1 where a request failed or its text was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.hardware import describe_hardware
from benchmarks.running_stack import STACK, RunningStack
from benchmarks.soak_faults import WARM_S, Growth, put_in
from benchmarks.soak_users import (
    DEADLINE_S,
    SECOND_BLOCK,
    TOKENS,
    Outcome,
    Users,
    keep_asking,
)

USERS = 4
# A wait between two events of a stream that a user would call a pause.
PAUSE_S = 1.0
# A stage keeps oneDNN's kernels, one for each number of rows that it has seen: some 0.8 MB each,
# 256 of them by itself (runner/stage/cpu/allocator.py), which random prompts are long in filling.
# With few, what grows is a leak.
FEW_KERNELS = {"LRU_CACHE_CAPACITY": "32", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
# Slots of ended requests are kept for those that begin alike, in as many positions as these fill: a
# hundred requests' worth.
LIMITS = {"max_concurrent_requests": 8, "max_model_len": 1024}


def stack_file(folder: Path) -> Path:
    """The shipped local stack with two blocks, which answer alike each time."""
    document = yaml.safe_load(STACK.read_text("utf-8"))
    deployment = document["config"]["splitstack:deployment"]
    [block] = deployment["proxy_blocks"]
    block["generation_config"] = {"temperature": 0, "max_new_tokens": TOKENS}
    deployment["proxy_blocks"] = [block, block | {"block_id": SECOND_BLOCK}]
    deployment["extra_env"] = FEW_KERNELS
    deployment["common_params"] |= LIMITS
    path = folder / STACK.name
    path.write_text(yaml.safe_dump(document), "utf-8")
    return path


async def soak(
    stack: RunningStack, *, minutes: float, every_s: float, users: int, seed: int, warm_s: float
) -> dict[str, Any]:
    """Asks, harms and looks for so long; the report."""
    choose = random.Random(seed)
    limits = httpx.Limits(max_connections=None)
    outcomes: list[Outcome] = []
    growth = Growth(stack, warm_s)
    async with httpx.AsyncClient(
        base_url=stack.front_url, timeout=DEADLINE_S, limits=limits
    ) as client:
        asking = Users(client, choose)
        await asking.learn()
        until = asyncio.get_running_loop().time() + minutes * 60
        async with asyncio.TaskGroup() as group:
            for _ in range(users):
                group.create_task(keep_asking(asking, until, outcomes))
            group.create_task(growth.watch(until))
            if every_s:
                faults = group.create_task(put_in(stack, choose, every_s, until))
    return {
        "minutes": minutes,
        "faults": dict(faults.result()) if every_s else {},
        **_summary(outcomes),
        "growth": growth.report(),
        "epoch": (await asyncio.to_thread(stack.topology))["epoch"],
    }


def _summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    waits = sorted(wait for outcome in outcomes for wait in outcome.pauses_s)
    pauses = [wait for wait in waits if wait > PAUSE_S]
    return {
        "requests": dict(Counter(outcome.kind for outcome in outcomes)),
        "refused": sum(outcome.refused for outcome in outcomes),
        "failed": sum(bool(outcome.failure) for outcome in outcomes),
        "wrong": sum(bool(outcome.wrong) for outcome in outcomes),
        "pauses": len(pauses),
        **{f"pause_s_{name}": round(_quantile(pauses, part), 1) for name, part in _PARTS.items()},
    }


_PARTS = {"p50": 0.5, "p99": 0.99, "max": 1.0}


def _quantile(values: Sequence[float], part: float) -> float:
    return values[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds from fault to fault")
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--warm", type=float, default=WARM_S, help="seconds until growth counts")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="splitstack-soak-") as folder:
        stack = RunningStack(Path(folder), stack_file(Path(folder)))
        try:
            report = asyncio.run(
                soak(
                    stack,
                    minutes=given.minutes,
                    every_s=given.every,
                    users=given.users,
                    seed=given.seed,
                    warm_s=given.warm,
                )
            )
        finally:
            stack.stop()
    print(json.dumps(report | {"hardware": describe_hardware()}))
    sys.exit(1 if report["failed"] or report["wrong"] else 0)


if __name__ == "__main__":
    main()
