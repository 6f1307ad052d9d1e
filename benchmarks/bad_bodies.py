"""What users notice while one client sends bodies that no client means.

    python -m benchmarks.bad_bodies                # about six minutes on 2 cores
    python -m benchmarks.bad_bodies --rounds 1 --seconds 15

Starts `stacks/Pulumi.local.yaml` as processes. Users stream short chats in quiet turns and in turns
in which a process of its own sends one such body after the other, to the front and to the master.
Each must be answered by its refusal. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.bad_body_kinds import send_bodies
from benchmarks.hardware import describe_hardware
from benchmarks.running_stack import BLOCK, DEPLOYMENT, RunningStack
from benchmarks.streamed_answer import Answer, ask, client_of, percentiles

USERS, TOKENS = 4, 16
AIMED_AT = 1.5


async def serve_users(url: str, seconds: float) -> list[Answer]:
    async with client_of(url) as client:
        until = time.perf_counter() + seconds

        async def user(number: int) -> list[Answer]:
            answers: list[Answer] = []
            while time.perf_counter() < until:
                answers.append(await ask(client, BLOCK, number, tokens=TOKENS))
                number += USERS
            return answers

        return [
            one for answers in await asyncio.gather(*map(user, range(USERS))) for one in answers
        ]


def figures(answers: list[Answer]) -> dict[str, float]:
    good = [one for one in answers if one.status == httpx.codes.OK and one.tokens]
    return {
        "answers": len(good),
        "failures": len(answers) - len(good),
        **percentiles("first_ms", [one.first_s for one in good]),
        **percentiles("gap_ms", [gap for one in good for gap in one.gaps_s]),
        **percentiles("whole_ms", [one.whole_s for one in good]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=40.0, help="of one turn")
    arguments = parser.parse_args()
    begin, end = multiprocessing.Event(), multiprocessing.Event()
    told: multiprocessing.Queue[dict[str, Any]] = multiprocessing.Queue()
    seen: dict[str, list[Answer]] = {"quiet": [], "bad bodies": []}
    with tempfile.TemporaryDirectory(prefix="splitstack-bench-") as folder:
        stack = RunningStack(Path(folder))
        urls = {stack.front_url: BLOCK, stack.master_url: DEPLOYMENT}
        sender = multiprocessing.Process(target=send_bodies, args=(urls, begin, end, told))
        sender.start()
        try:
            asyncio.run(serve_users(stack.front_url, arguments.seconds / 2))  # warms up
            for _ in range(arguments.rounds):
                for name, answers in seen.items():
                    begin.set() if name == "bad bodies" else begin.clear()
                    answers += asyncio.run(serve_users(stack.front_url, arguments.seconds))
            end.set()
            begin.set()
            refusals = told.get(timeout=120)
        finally:
            sender.kill()
            stack.stop()
    results: dict[str, Any] = {name: figures(answers) for name, answers in seen.items()}
    for name, found in results.items():
        print(f"{name:10}", *(f"{key} {value:.1f}" for key, value in found.items()))
    for kind, (number, slowest_ms) in refusals.items():
        print(f"{number:4} x {kind}, the slowest after {slowest_ms} ms")
    ratios = {
        key: round(results["bad bodies"][key] / value, 2)
        for key, value in results["quiet"].items()
        if key.endswith(("p50", "p99"))
    }
    print(f"bad bodies by quiet (p99 aimed at {AIMED_AT}):", ratios)
    results |= {"ratios": ratios, "refusals": refusals, "hardware": describe_hardware()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
