"""The same stack with our own engine and with vLLM in its ranks, by turns.

    python -m benchmarks.platforms
    python -m benchmarks.platforms --dtypes float32 --loads 1 16 --rounds 1

`stacks/Pulumi.local.yaml` (the demo model, two ranks of one thread each) once with
`platform: torch` and once with `platform: vllm`, both as processes of this machine, of which one is
idle while the other is asked. Concurrent users stream chat answers straight from rank 0's API.
vLLM is installed when it is missing: several gigabytes, once. All traffic is loopback. The last
line is JSON; the exit code is 1 where an answer failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.hardware import describe_hardware
from benchmarks.running_stack import DEPLOYMENT, RunningStack
from benchmarks.users import cpu_ms_per_token, serve_users

PLATFORMS = ("torch", "vllm")
SETS = ("common_params.max_model_len=1024", "common_params.max_concurrent_requests=32")
Figures = dict[str, dict[str, float]]


def compare(folder: Path, dtype: str, loads: list[int], rounds: int) -> dict[str, Figures]:
    """Medians over rounds, by load and platform."""
    stacks: dict[str, RunningStack] = {}
    try:
        for platform in PLATFORMS:
            own = folder / f"{platform}-{dtype}"
            own.mkdir()
            sets = (f"platform={platform}", f"common_params.dtype={dtype}", *SETS)
            stacks[platform] = RunningStack(own, sets=sets)
        return {str(load): _by_turns(stacks, load, rounds) for load in loads}
    finally:
        for stack in stacks.values():
            stack.stop()


def _by_turns(stacks: dict[str, RunningStack], load: int, rounds: int) -> Figures:
    runs: dict[str, list[dict[str, float]]] = {platform: [] for platform in stacks}
    for number in range(rounds + 1):
        for platform, stack in stacks.items():
            before = stack.cpu_s()
            run = asyncio.run(serve_users(stack.master_url, DEPLOYMENT, load))
            run |= cpu_ms_per_token(before, stack.cpu_s(), load)
            if number:  # the first round warms up
                runs[platform].append(run)
    found: Figures = {}
    for platform, measured in runs.items():
        medians = {key: statistics.median(run[key] for run in measured) for key in measured[0]}
        medians["failures"] = sum(run["failures"] for run in measured)
        found[platform] = {key: round(value, 1) for key, value in medians.items()}
        print(f"{load:3} users, {platform:5}", *(f"{k} {v}" for k, v in found[platform].items()))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--loads", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    results: dict[str, dict[str, Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="splitstack-bench-") as folder:
        for dtype in arguments.dtypes:
            print(dtype)
            results[dtype] = compare(Path(folder), dtype, arguments.loads, arguments.rounds)
    print(json.dumps(results | {"rounds": arguments.rounds, "hardware": describe_hardware()}))
    failures = [
        it["failures"] for by in results.values() for of in by.values() for it in of.values()
    ]
    return 1 if any(failures) else 0


if __name__ == "__main__":
    sys.exit(main())
