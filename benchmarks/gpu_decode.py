"""Parts of `python -m benchmarks.gpu` that time decode steps, on any device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu_checks import Finding, Sizes
from runner.sampling_parameters import SamplingParameters
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel
from runner.steps import Admission, Segment, Step

# The least share of what the bytes alone would take, by rows; others are told only.
LEAST_SHARES = {1: 0.70, 128: 0.55}
WARM_STEPS = 5
GREEDY = SamplingParameters(temperature=0)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_rate(device: torch.device, sizes: Sizes) -> float:
    """Bytes a second that a copy within the device's memory reads and writes."""
    source = torch.zeros(sizes.copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        wait_for(device)
        began = time.perf_counter()
        target.copy_(source)
        wait_for(device)
        times.append(time.perf_counter() - began)
    return 2 * sizes.copied_bytes / min(times)


def decode_findings(
    device: torch.device, sizes: Sizes, folder: Path, rate: float
) -> Iterator[Finding]:
    checkpoint, name = Checkpoint(folder), str(sizes.dtype).removeprefix("torch.")
    logits: dict[tuple[bool, int], torch.Tensor] = {}
    medians: dict[tuple[bool, int], float] = {}
    for graphs in (False, True):
        model = StageModel.load(
            checkpoint,
            (0, sizes.layers),
            dtype=name,
            device=str(device),
            decode_graphs=graphs,
        )
        model.reserve_kv(max(sizes.rows) * _capacity(sizes))
        for rows in sizes.rows:
            medians[graphs, rows], logits[graphs, rows] = decode(model, device, sizes, rows)
            read = model.weight_bytes + rows * sizes.context * model.kv_bytes_per_token
            share = read / rate / medians[graphs, rows]
            how = "with graphs" if graphs else "eager"
            what = f"decode of {rows} rows {how}, {medians[graphs, rows] * 1e3:.2f} ms a step"
            passed = not graphs or share >= LEAST_SHARES.get(rows, 0.0)
            yield Finding(what, 100 * share, "% of a copy's rate", passed)
        if graphs:
            off = model.graphs_are_off
            yield Finding("graphs could be recorded", float(not off), "", not off)
        del model
    for rows in sizes.rows:
        same = logits[False, rows].argmax(-1) == logits[True, rows].argmax(-1)
        what = f"ids of {rows} rows with graphs that are the eager ones"
        yield Finding(what, 100 * float(same.double().mean()), "%", bool(same.all()))


def decode(
    model: StageModel, device: torch.device, sizes: Sizes, rows: int
) -> tuple[float, torch.Tensor]:
    """The median of a step's seconds, and the logits of every step [steps, rows, vocabulary]."""
    _fill(model, sizes, rows)
    times, kept = [], []
    for number in range(WARM_STEPS + sizes.steps):
        place = sizes.context + number
        segments = tuple(Segment(row, place, 1, place + 1, True) for row in range(rows))
        ids = [(31 * row + 7 * number) % sizes.vocabulary for row in range(rows)]
        wait_for(device)
        began = time.perf_counter()
        logits = model.forward(Step(number, segments, ids), None)
        wait_for(device)
        if number >= WARM_STEPS:
            times.append(time.perf_counter() - began)
            kept.append(logits.to(sizes.dtype).cpu())
    return statistics.median(times), torch.stack(kept)


def _capacity(sizes: Sizes) -> int:
    return sizes.context + WARM_STEPS + sizes.steps


def _fill(model: StageModel, sizes: Sizes, rows: int) -> None:
    """One prompt is computed; the others begin with all of it."""
    model.reset()
    capacity, prompt = _capacity(sizes), [position % 1000 for position in range(sizes.context)]
    for row in range(rows):
        reused = sizes.context if row else 0
        model.admit(Admission(row, capacity, sizes.context, 0, 0, GREEDY, donor=0, reused=reused))
        if row == 0:
            prefill = Segment(0, 0, sizes.context, sizes.context, True)
            model.forward(Step(0, (prefill,), prompt), None)
