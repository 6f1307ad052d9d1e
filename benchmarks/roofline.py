"""What this machine's matrix multiplications allow at most, beside what was measured.

    python -m benchmarks.roofline

Times float32 products of the benchmark model's largest matrix with all cores: torch's own kernel,
and oneDNN's on weights packed once, as our stages hold them. From the fastest of both follows the
most tokens/s that any engine built on them can reach for the serving benchmark's requests, if
everything else cost nothing. The last line is JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch

from benchmarks.hardware import describe_hardware
from benchmarks.random_model import (
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    KEY_VALUE_HEADS,
    LAYERS,
    VOCABULARY,
)
from benchmarks.serving import NEW_TOKENS, PROMPT_TOKENS

LOADS = (1, 4, 16, 32)
PREFILL_ROWS = 512
COPIES = 12  # more than any cache holds
ATTEMPTS = 15


def layer_elements() -> int:
    """Weights of one decoder layer: query and output, key and value, the three of the MLP."""
    key_value = HIDDEN * KEY_VALUE_HEADS // HEADS
    return HIDDEN * (2 * HIDDEN + 2 * key_value + 3 * INTERMEDIATE)


def seconds(work: Callable[[], object]) -> float:
    """The shortest of several attempts: what the machine can do when nobody else is on it."""
    times = []
    for _ in range(ATTEMPTS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def rates(rows: int) -> dict[str, float]:
    """Floating point operations a second of either kernel, for so many rows."""
    dense = [torch.randn(INTERMEDIATE, HIDDEN) for _ in range(COPIES)]
    packed = [torch.ops.mkldnn._reorder_linear_weight(matrix) for matrix in dense]
    given = torch.randn(rows, HIDDEN)

    def multiply_dense() -> None:
        for matrix in dense:
            torch.nn.functional.linear(given, matrix)

    def multiply_packed() -> None:
        for matrix in packed:
            torch.ops.mkldnn._linear_pointwise(given, matrix, None, "none", [], "")

    operations = 2 * rows * HIDDEN * INTERMEDIATE * COPIES
    return {
        "dense": operations / seconds(multiply_dense),
        "packed": operations / seconds(multiply_packed),
    }


def most_tokens_per_s(load: int, decode_rate: float, prefill_rate: float) -> float:
    """`load` requests of PROMPT_TOKENS + NEW_TOKENS; the head only where a token is sampled."""
    layers = 2 * LAYERS * layer_elements()
    head = 2 * HIDDEN * VOCABULARY
    prefill = load * (PROMPT_TOKENS * layers + head) / prefill_rate
    decode = load * (NEW_TOKENS - 1) * (layers + head) / decode_rate
    return load * NEW_TOKENS / (prefill + decode)


def main() -> None:
    prefill = rates(PREFILL_ROWS)
    print(f"{PREFILL_ROWS:4} rows  " + _shown(prefill))
    most: dict[int, float] = {}
    for load in LOADS:
        found = rates(load)
        most[load] = most_tokens_per_s(load, max(found.values()), max(prefill.values()))
        print(f"{load:4} rows  {_shown(found)}   at most {most[load]:6.1f} tokens/s")
    result = {"most_tokens_per_s": {load: round(most[load], 1) for load in LOADS}}
    print(json.dumps(result | {"hardware": describe_hardware()}))


def _shown(found: dict[str, float]) -> str:
    return "  ".join(f"{name} {rate / 1e9:6.1f} GFLOP/s" for name, rate in found.items())


if __name__ == "__main__":
    main()
