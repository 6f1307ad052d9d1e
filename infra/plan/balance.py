"""What the measured times of a group say of how its layers were cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# The mean that a rank reports forgets within about this many steps.
_ENOUGH_STEPS = 200
# How much longer than the mean of all ranks the slowest one takes, and how much of its time another
# cut has to save: below, it is noise and what cannot be cut finer.
_LONGER, _SAVED = 1.2, 0.05


def balance_advice(topology: Mapping[str, Any]) -> str:
    """A sentence where another cut of the layers would make every step shorter, else "".

    `topology` is what the master's /topology answers. A speed is weight bytes by time of a step,
    as in infra/plan/layers.py, and the fastest rank's is 1.
    """
    ranks: Sequence[Mapping[str, Any]] = topology["ranks"]
    measured = all(rank["loaded"] and rank.get("compute_ms") for rank in ranks)
    if len(ranks) < 2 or not measured or topology.get("steps", 0) < _ENOUGH_STEPS:
        return ""
    times = [rank["compute_ms"] for rank in ranks]
    layers = [rank["layers"][1] - rank["layers"][0] for rank in ranks]
    slowest, fastest = times.index(max(times)), times.index(min(times))
    moved = max(
        times[slowest] * (1 - 1 / layers[slowest]), times[fastest] * (1 + 1 / layers[fastest])
    )
    if times[slowest] < _LONGER * sum(times) / len(times):
        return ""
    if moved > (1 - _SAVED) * times[slowest]:
        return ""
    rates = [rank["weight_bytes"] / time for rank, time in zip(ranks, times, strict=True)]
    speeds = ", ".join(f"{number}: {rate / max(rates):.2g}" for number, rate in enumerate(rates))
    return (
        f"rank {slowest} computes {times[slowest]:.1f} ms of a step and rank {fastest} "
        f"{times[fastest]:.1f} ms: steps would be shorter with fewer layers on rank {slowest}. "
        f"Measured speeds for per_rank_params[].speed by rank: {speeds}; layers that the stack "
        "file gives are not cut by them"
    )
