"""What users of the whole stack see, and what the two tiers in front of the master cost.

    python -m benchmarks.users                # about ten minutes on 2 cores
    python -m benchmarks.users --loads 16 --rounds 1

Starts `stacks/Pulumi.local.yaml` (the demo model, two ranks) as processes. Concurrent users stream
chat answers through the inference server and straight from the master, in turns. Then eight times
the requests that can be answered, and clients that vanish after their first token. All traffic is
loopback and bounded. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.hardware import describe_hardware
from benchmarks.overload import overload, vanish
from benchmarks.running_stack import BLOCK, DEPLOYMENT, RunningStack
from benchmarks.streamed_answer import ANSWER_TOKENS, Answer, ask, client_of, percentiles

ANSWERS_PER_USER = 2
COMPARED_LOAD = 16
FIRST_TOKEN_TURNS, FIRST_TOKEN_ANSWERS = 4, 6


async def serve_users(url: str, model: str, users: int) -> dict[str, float]:
    """Every user asks one question after the other."""
    async with client_of(url) as client:

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


def compare_tiers(stack: RunningStack, loads: Sequence[int], rounds: int) -> dict[str, Any]:
    """Medians over rounds by load, for the front and for the master alone."""
    targets = {"front": (stack.front_url, BLOCK), "master": (stack.master_url, DEPLOYMENT)}
    results: dict[str, Any] = {}
    for load in loads:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in targets}
        for number in range(rounds + 1):
            for name, target in targets.items():
                before = stack.cpu_s()
                run = asyncio.run(serve_users(*target, load))
                run |= cpu_ms_per_token(before, stack.cpu_s(), load)
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


def cpu_ms_per_token(
    before: dict[str, float], after: dict[str, float], users: int
) -> dict[str, float]:
    """Of all processes, and of the two tiers in front; before and after: RunningStack.cpu_s()."""
    tokens = users * ANSWERS_PER_USER * ANSWER_TOKENS
    spent = {name: (after[name] - before[name]) * 1e3 / tokens for name in before}
    tiers = sum(spent.get(name, 0.0) for name in (f"proxy-{BLOCK}", "inference-server"))
    return {"cpu_ms_per_token": sum(spent.values()), "cpu_ms_per_token_of_the_tiers": tiers}


async def first_token_cost(stack: RunningStack, users: int) -> dict[str, float]:
    """What the tiers add to the time to first token, in milliseconds.

    The same requests are timed by the client and by the master, so that waiting for a step, which
    is most of it and varies most, is taken out: cost = (client - master through the front) -
    (client - master straight). Means; the front and the master alone take turns.
    """
    targets = {"front": (stack.front_url, BLOCK), "master": (stack.master_url, DEPLOYMENT)}
    seconds: dict[str, list[float]] = {name: [] for name in targets}
    added: dict[str, list[float]] = {name: [] for name in targets}
    for turn in range(FIRST_TOKEN_TURNS + 1):
        for name, target in targets.items():
            before = await stack.first_tokens()
            found = await _first_tokens(*target, users)
            after = await stack.first_tokens()
            if turn:  # the first one warms up
                seconds[name] += found
                master_s = (after[0] - before[0]) / (after[1] - before[1])
                added[name].append(statistics.fmean(found) - master_s)
    costs = [front - master for front, master in zip(added["front"], added["master"], strict=True)]
    figures = {"cost_ms": statistics.fmean(costs) * 1e3}
    figures["standard_error_ms"] = statistics.stdev(costs) / len(costs) ** 0.5 * 1e3
    for name, values in seconds.items():
        figures |= percentiles(f"{name}_first_ms", values)
    return {key: round(value, 1) for key, value in figures.items()}


async def _first_tokens(url: str, model: str, users: int) -> list[float]:
    """Seconds. Users come one after the other, and unequal answers keep them out of step."""
    async with client_of(url) as client:

        async def user(number: int) -> list[Answer]:
            await asyncio.sleep(number * 0.2)
            lengths = (4 + (number * 5 + item * 3) % 9 for item in range(FIRST_TOKEN_ANSWERS))
            return [await ask(client, model, number, tokens=some) for some in lengths]

        asked = await asyncio.gather(*map(user, range(users)))
    return [answer.first_s for answers in asked for answer in answers]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loads", type=int, nargs="+", default=[1, 4, COMPARED_LOAD, 64])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="splitstack-bench-") as folder:
        stack = RunningStack(Path(folder))
        try:
            results = {"users": compare_tiers(stack, arguments.loads, arguments.rounds)}
            results["first_token"] = asyncio.run(first_token_cost(stack, COMPARED_LOAD))
            print(results["first_token"])
            results["overload"] = asyncio.run(overload(stack))
            results["vanishing"] = asyncio.run(vanish(stack))
        finally:
            stack.stop()
    print(json.dumps(results | {"rounds": arguments.rounds, "hardware": describe_hardware()}))


if __name__ == "__main__":
    main()
