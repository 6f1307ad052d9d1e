"""Time to the first token of a chat's turns, with its history reused and computed each time.

    python -m benchmarks.turns --ranks 2

Each turn is the whole history and a new question: 200 tokens a turn, 32 of them answered. The same
turns are asked in one domain, as one API key asks, and each in a domain of its own, which shares
nothing. Conversations take turns; the first one warms up; figures are medians over the others. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import httpx

from benchmarks.engines import Splitstack
from benchmarks.hardware import describe_hardware
from benchmarks.random_model import LAYERS, VOCABULARY, make_random_model
from contract import carry
from web.domain import HEADER

TURNS, TURN_TOKENS, ANSWER_TOKENS = 8, 200, 32
AIMED_AT = 1.3  # first token of the last turn, of that of the first


@dataclass(frozen=True)
class Turn:
    prompt_tokens: int
    cached_tokens: int
    first_s: float


def ask(client: httpx.Client, model: str, prompt: list[int], domain: str) -> tuple[Turn, list[int]]:
    """One streamed completion and its ids."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {HEADER: domain, carry.HEADER: carry.ASKS_FOR_IDS}
    ids: list[int] = []
    usage, first_s, start = None, None, time.perf_counter()
    with client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        for line in response.iter_lines():
            if line.startswith(": carry"):
                told = carry.parse_line(line.encode())
                if isinstance(told, carry.Advance):
                    first_s = first_s or time.perf_counter() - start
                    ids += told.ids
            elif line.startswith("data: {"):
                usage = json.loads(line[6:]).get("usage") or usage
    assert usage is not None, f"no whole answer: {response.status_code}"
    assert first_s is not None
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return Turn(usage["prompt_tokens"], cached, first_s), ids


def converse(engine: Splitstack, seed: int, *, reused: bool) -> list[Turn]:
    chance, history, turns = random.Random(seed), list[int](), []
    with httpx.Client(base_url=engine.url, timeout=600) as client:
        for _ in range(TURNS):
            question = TURN_TOKENS - ANSWER_TOKENS
            history += [chance.randrange(100, VOCABULARY) for _ in range(question)]
            domain = f"{seed:032x}" if reused else uuid4().hex
            turn, ids = ask(client, engine.name, history, domain)
            history += ids
            turns.append(turn)
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--conversations", type=int, default=3)
    parser.add_argument("--model", type=Path, default=Path(".cache/random-llama-350m"))
    arguments = parser.parse_args()
    arguments.model.parent.mkdir(parents=True, exist_ok=True)
    folder = make_random_model(arguments.model).resolve()
    ranks = arguments.ranks
    layers = [(LAYERS * rank // ranks, LAYERS * (rank + 1) // ranks) for rank in range(ranks)]
    found: dict[bool, list[list[Turn]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory(prefix="splitstack-turns-") as state:
        engine = Splitstack(folder, layers, 1, Path(state))
        try:
            for seed in range(arguments.conversations + 1):
                for reused, conversations in found.items():
                    turns = converse(engine, seed, reused=reused)
                    if seed:
                        conversations.append(turns)
        finally:
            engine.stop()
    print(f"{'turn':>4} {'prompt':>7} {'cached':>7} {'reused, s':>10} {'computed, s':>12}")
    rows = []
    for place in range(TURNS):
        kept = [turns[place] for turns in found[True]]
        whole = [turns[place] for turns in found[False]]
        row = Turn(
            kept[0].prompt_tokens,
            kept[0].cached_tokens,
            statistics.median(turn.first_s for turn in kept),
        )
        computed = statistics.median(turn.first_s for turn in whole)
        rows.append({**asdict(row), "computed_first_s": computed})
        print(
            f"{place + 1:4} {row.prompt_tokens:7} {row.cached_tokens:7}"
            f" {row.first_s:10.3f} {computed:12.3f}"
        )
    ratios = [turns[-1].first_s / turns[0].first_s for turns in found[True]]
    ratio = statistics.median(ratios)
    print(f"turn {TURNS} of turn 1: {ratio:.2f}x, aimed at {AIMED_AT}x at most")
    print(json.dumps({"turns": rows, "ratio": ratio, "hardware": describe_hardware()}))


if __name__ == "__main__":
    main()
