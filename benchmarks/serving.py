"""Tokens per second of a split model, side by side with its peers in one interleaved run.

    python -m benchmarks.serving              # about an hour on 2 cores
    python -m benchmarks.serving --quick      # loads 1 and 32, three rounds, no continuous batching
    python -m benchmarks.serving --dtypes float32 bfloat16      # ours alone, with each of them

A random-weight Llama of about 350 M parameters in float32. Requests of one length are the best case
of a peer that pads; `mixed` draws prompts and answers of 8 to 128 tokens, as users send them. In
every round each engine serves the same prompts in turn while the others idle; figures are medians
over rounds, and ratios are medians of the ratios within a round. Failed requests are counted. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.engines import Engine, Outcome, Splitstack, Transformers
from benchmarks.hardware import describe_hardware
from benchmarks.random_model import LAYERS, VOCABULARY, make_random_model

PROMPT_TOKENS, NEW_TOKENS = 32, 64
MIXED_TOKENS = (8, 128)  # of prompts and of answers, drawn evenly over the logarithm
FIRST_TOKEN_PROMPT = 512
SPLIT = [(0, 13), (13, 22)]  # as `splitstack plan` cuts it: the head weighs as much as 4 layers


@dataclass(frozen=True)
class Work:
    """What one round asks of every engine."""

    prompts: list[list[int]]
    new_tokens: list[int]


def make_work(count: int, prompt_tokens: int, new_tokens: int, seed: int) -> Work:
    """`count` requests of one length."""
    generator = random.Random(seed)
    prompts = [_draw_prompt(generator, prompt_tokens) for _ in range(count)]
    return Work(prompts, [new_tokens] * count)


def make_mixed_work(count: int, seed: int) -> Work:
    generator = random.Random(seed)
    prompts = [_draw_prompt(generator, _draw_length(generator)) for _ in range(count)]
    return Work(prompts, [_draw_length(generator) for _ in range(count)])


def _draw_prompt(generator: random.Random, length: int) -> list[int]:
    return [generator.randrange(100, VOCABULARY) for _ in range(length)]


def _draw_length(generator: random.Random) -> int:
    least, most = MIXED_TOKENS
    return round(math.exp(generator.uniform(math.log(least), math.log(most))))


def start_engines(folder: Path, state: Path, quick: bool) -> list[Engine]:
    engines: list[Engine] = [
        Splitstack(folder, SPLIT, 1, state),
        Splitstack(folder, SPLIT, 2, state),
        Splitstack(folder, [(0, LAYERS)], 2, state),
        Transformers(folder, "pipeline", 2, 1, state),
        Transformers(folder, "pipeline", 2, 2, state),
        Transformers(folder, "generate", 1, 2, state),
    ]
    if not quick:
        engines.append(Transformers(folder, "continuous", 1, 2, state))
    return engines


def start_dtypes(folder: Path, state: Path, dtypes: list[str]) -> list[Engine]:
    return [Splitstack(folder, SPLIT, 1, state, dtype) for dtype in dtypes]


def measure(
    engines: list[Engine], rounds: int, make: Callable[[int], Work]
) -> dict[str, list[Outcome]]:
    """Outcomes by engine name, `rounds` of them each, engines taking turns; `make` takes a seed."""
    outcomes: dict[str, list[Outcome]] = {engine.name: [] for engine in engines}
    for number in range(rounds + 1):
        work = make(number)
        for engine in engines:
            outcome = engine.run(work.prompts, work.new_tokens)
            if number > 0:  # the first round warms up
                outcomes[engine.name].append(outcome)
    return outcomes


def summarize(case: str, outcomes: dict[str, list[Outcome]]) -> dict[str, object]:
    """Print one case and return it for the JSON line."""
    ours = next(iter(outcomes))
    summary: dict[str, object] = {}
    print(f"\n{case}")
    for name, runs in outcomes.items():
        speed = statistics.median(run.tokens / run.seconds for run in runs)
        seconds = statistics.median(run.seconds for run in runs)
        failures = sum(run.failures for run in runs)
        ratio = statistics.median(
            other.seconds / own.seconds for own, other in zip(outcomes[ours], runs, strict=True)
        )
        print(
            f"  {name:42} {speed:8.1f} tokens/s {seconds:8.2f} s"
            f"   {ours} is {ratio:5.2f}x   failures {failures}"
        )
        summary[name] = {
            "tokens_per_s": round(speed, 2),
            "seconds": round(seconds, 3),
            "first_engine_speedup": round(ratio, 3),
            "failures": failures,
        }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--loads", type=int, nargs="+", default=[])
    parser.add_argument("--dtypes", nargs="+", default=[])
    parser.add_argument("--model", type=Path, default=Path(".cache/random-llama-350m"))
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 5)
    loads = arguments.loads or ([1, 32] if arguments.quick else [1, 4, 16, 32, 64])
    arguments.model.parent.mkdir(parents=True, exist_ok=True)
    folder = make_random_model(arguments.model)
    results: dict[str, object] = {}
    engines: list[Engine] = []
    with tempfile.TemporaryDirectory(prefix="splitstack-bench-") as state:
        try:
            if arguments.dtypes:
                engines = start_dtypes(folder.resolve(), Path(state), arguments.dtypes)
            else:
                engines = start_engines(folder.resolve(), Path(state), arguments.quick)
            for load in loads:
                case = f"{load} concurrent requests, {PROMPT_TOKENS} + {NEW_TOKENS} tokens"
                make = partial(make_work, load, PROMPT_TOKENS, NEW_TOKENS)
                results[case] = summarize(case, measure(engines, rounds, make))
            mixed = max(loads)
            case = "{} concurrent requests, {} to {} tokens".format(mixed, *MIXED_TOKENS)
            # generate_batch takes one length of answer for all.
            able = [engine for engine in engines if "continuous" not in engine.name]
            make = partial(make_mixed_work, mixed)
            results[case] = summarize(case, measure(able, rounds, make))
            case = f"first token of a {FIRST_TOKEN_PROMPT}-token prompt"
            make = partial(make_work, 1, FIRST_TOKEN_PROMPT, 1)
            results[case] = summarize(case, measure(engines, rounds, make))
        finally:
            for engine in engines:
                engine.stop()
    print(json.dumps({"results": results, "rounds": rounds, "hardware": describe_hardware()}))


if __name__ == "__main__":
    main()
