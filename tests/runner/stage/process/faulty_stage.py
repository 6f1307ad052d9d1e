"""`python -m tests.runner.stage.process.faulty_stage`: a stage that fails when it is told to.

FAULTS names a file; the stage reads the one with its rank behind it. Each call of the model takes
the file's first word and raises what it names; "well" names nothing. "idle" is for the device, when
it is asked.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from runner.stage.model.stage_model import StageModel
from runner.stage.process.device import Cpu

FAULTS = "SPLITSTACK_TEST_FAULTS"
DEVICE_ERROR = "CUDA error: an illegal memory access was encountered"
# Made anew each time: one that was raised keeps its traceback.
ERRORS: dict[str, Callable[[], Exception]] = {
    "memory": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "device": lambda: torch.AcceleratorError(f"{DEVICE_ERROR}\nCompile with TORCH_USE_CUDA_DSA"),
    "idle": lambda: torch.AcceleratorError(DEVICE_ERROR),
    "other": lambda: ValueError("nothing that a device has to do with"),
}


def take(file: Path, *known: str) -> None:
    """Raise what the first word of the file names, if it is one of `known`."""
    words = file.read_text().split() if file.is_file() else []
    if words and words[0] in known:
        file.write_text(" ".join(words[1:]))
        if words[0] in ERRORS:
            raise ERRORS[words[0]]()


def main() -> None:
    spec = Path(sys.argv[sys.argv.index("--spec") + 1])
    rank = json.loads(spec.read_text())["rank"]
    file = Path(f"{os.environ[FAULTS]}-{rank}")
    run = StageModel._run

    def run_and_fail(self: StageModel, *arguments: Any) -> Any:
        output = run(self, *arguments)  # keys and values are written by now
        take(file, "well", "memory", "device", "other")
        return output

    StageModel._run = run_and_fail  # type: ignore[method-assign, assignment]
    Cpu.ask = lambda self: take(file, "idle")  # type: ignore[method-assign]
    runpy.run_module("runner.stage", run_name="__main__")


if __name__ == "__main__":
    main()
