"""Peak resident memory of each stage beside its bound.

    python -m benchmarks.stage_memory [--ranks 2]

The bound is the peak of a process that only imports torch and transformers, plus the bytes of the
rank's own weights, plus 150 MB. transformers imports its modeling code lazily, and every model
needs it, so the peak with that import is shown beside. The last line is JSON; exit code 1 when a
stage is over its bound.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.engines import Splitstack
from benchmarks.hardware import describe_hardware
from benchmarks.random_model import LAYERS, make_random_model

ALLOWANCE_BYTES = 150_000_000
PEAK = "VmHWM"
IMPORTS = ("torch, transformers", "torch, transformers.modeling_utils")
PRINT_PEAK = f"""
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("{PEAK}")][0])
"""


def peak_bytes(process_id: int) -> int:
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith(PEAK):
            return int(line.split()[1]) * 1024
    raise LookupError(f"no {PEAK} in /proc/{process_id}/status")


def peak_of_imports(imports: str) -> int:
    code = f"import {imports}{PRINT_PEAK}"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return int(output.stdout) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--model", type=Path, default=Path(".cache/random-llama-350m"))
    arguments = parser.parse_args()
    arguments.model.parent.mkdir(parents=True, exist_ok=True)
    folder = make_random_model(arguments.model).resolve()
    baseline, modeling = (peak_of_imports(imports) for imports in IMPORTS)
    borders = [LAYERS * rank // arguments.ranks for rank in range(arguments.ranks + 1)]
    layers = list(itertools.pairwise(borders))
    print(f"import {IMPORTS[0]}: {baseline / 1e6:.0f} MB; {IMPORTS[1]}: {modeling / 1e6:.0f} MB")
    stages = []
    with tempfile.TemporaryDirectory(prefix="splitstack-bench-") as state:
        engine = Splitstack(folder, layers, 1, Path(state))
        try:
            engine.run([[1, 2, 3, 4]] * 4, [16] * 4)
            weights = [rank["weight_bytes"] for rank in engine.topology()["ranks"]]
            for rank, process in enumerate(engine.processes[1:]):
                peak, bound = peak_bytes(process.pid), baseline + weights[rank] + ALLOWANCE_BYTES
                print(
                    f"rank {rank}: weights {weights[rank] / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB,"
                    f" bound {bound / 1e6:.0f} MB: {'ok' if peak <= bound else 'OVER'};"
                    f" {(peak - modeling - weights[rank]) / 1e6:.0f} MB over modeling + weights"
                )
                stages.append({"weights": weights[rank], "peak": peak, "bound": bound})
        finally:
            engine.stop()
    report = {
        "baseline": baseline,
        "modeling": modeling,
        "stages": stages,
        "hardware": describe_hardware(),
    }
    print(json.dumps(report | {"hardware": describe_hardware()}))
    sys.exit(any(stage["peak"] > stage["bound"] for stage in stages))


if __name__ == "__main__":
    main()
