"""What a GPU has to show before the runner is said to work on one; nobody has run it yet.

    python -m benchmarks.gpu

One GPU, no network, under 8 minutes; whatever torch is installed is named. Looked at are: what the
attention chosen there answers, beside float64; random admissions that all fit; ids of decode steps
with graphs beside those without; a decode step's time as a share of what a copy of as many bytes
takes, measured in the same run. The last line is JSON; exit code 1 when a pass mark is missed, 2
where there is no GPU. Two stages on one GPU, one of them killed, are not in it, nor are peers.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.gpu_checks import Finding, Sizes, admissions_fit, attention_is_right, make_model
from benchmarks.gpu_decode import copy_rate, decode_findings
from benchmarks.hardware import describe_hardware

LIMIT_S = 480


def main() -> int:
    if not torch.cuda.is_available():
        print("benchmarks.gpu: torch sees no GPU here, and there is nothing to measure without one")
        return 2
    device, sizes, began = torch.device("cuda:0"), Sizes(), time.monotonic()
    print(f"torch {torch.__version__} on {torch.cuda.get_device_name(device)}")
    torch.backends.cuda.enable_cudnn_sdp(False)  # as a stage does
    with tempfile.TemporaryDirectory(prefix="splitstack-gpu-") as folder:
        findings = list(look(device, sizes, Path(folder), lambda: time.monotonic() - began))
    spent = time.monotonic() - began
    print(
        json.dumps(
            {
                **describe_hardware(),
                "gpu": torch.cuda.get_device_name(device),
                "seconds": round(spent, 1),
                "findings": [asdict(finding) for finding in findings],
            }
        )
    )
    return 0 if all(finding.passed for finding in findings) else 1


def look(
    device: torch.device, sizes: Sizes, folder: Path, spent_s: Callable[[], float]
) -> Iterator[Finding]:
    """Each finding is printed as it comes; what has no time left is missed."""
    parts: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("the operator", lambda: [operator_is_there()]),
        ("attention", lambda: attention_is_right(device, sizes)),
        ("admissions", lambda: [admissions_fit(device, sizes)]),
        ("decode", lambda: decode(device, sizes, folder)),
    ]
    for name, part in parts:
        if spent_s() > LIMIT_S:
            yield told(Finding(f"{name}: no time was left", 0, "", False))
            continue
        for finding in part():
            yield told(finding)


def decode(device: torch.device, sizes: Sizes, folder: Path) -> Iterator[Finding]:
    rate = copy_rate(device, sizes)
    yield Finding("a copy reads and writes", rate / 1e9, "GB/s", True)
    yield from decode_findings(device, sizes, make_model(folder / "model", device, sizes), rate)


def operator_is_there() -> Finding:
    schema = torch.ops.aten._flash_attention_forward.default._schema
    found = any(argument.name == "seqused_k" for argument in schema.arguments)
    return Finding("aten::_flash_attention_forward takes seqused_k", float(found), "", found)


def told(finding: Finding) -> Finding:
    print(finding.sentence(), flush=True)
    return finding


if __name__ == "__main__":
    sys.exit(main())
