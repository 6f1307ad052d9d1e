"""What the engine says of itself: counters for /metrics, the ranks for /topology."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from contract.specs import RankPart
from runner.master.engine.scheduler import Scheduler
from runner.master.engine.step_cost import StageCost, StepCost
from runner.master.group.formation import RankGroup
from runner.master.group.swap import Swap
from runner.transport.control import Join, StageInfo


@dataclass(frozen=True)
class RankStatistics:
    """One rank: `stage` None while none is loaded, restarts and times since the master began."""

    rank: int
    stage: StageInfo | None
    restarts: int
    cost: StageCost
    join: Join | None = None
    """What its process says of itself; without a stage it is loading."""


@dataclass
class EngineStatistics:
    """Counters since the start, and the present (`running` to `ranks`)."""

    requests: int = 0
    generated_tokens: int = 0
    steps: int = 0
    admitted_tokens: int = 0
    """Known ids of requests when they were admitted, and how many of them were not computed."""
    reused_tokens: int = 0
    losses: int = 0
    replays: int = 0
    running: int = 0
    waiting: int = 0
    kv_tokens_used: int = 0
    kv_tokens_reserved: int = 0
    kv_tokens_kept: int = 0
    kv_tokens: int = 0
    epoch: int = 0
    formations: int = 0
    steps_in_flight: int = 0
    micro_batches: int = 0
    held: int = 0
    ready: bool = False
    failed: bool = False
    ranks: Sequence[RankStatistics] = ()
    swaps: Mapping[str, int] = field(default_factory=dict)
    """Specs that were brought in, and that failed, by these words."""
    swap: Swap | None = None


def take_statistics(
    known: EngineStatistics, group: RankGroup, cost: StepCost, scheduler: Scheduler | None
) -> EngineStatistics:
    """What the engine knows itself, completed by the group and this epoch's scheduler."""
    history = group.history
    stages = group.stages()
    restarts = history.restarts(len(stages))
    ranks = tuple(
        RankStatistics(rank, stage, restarts[rank], cost.of(rank), join)
        for rank, (stage, join) in enumerate(zip(stages, group.joins(), strict=True))
    )
    present = replace(
        known,
        epoch=history.epoch,
        formations=history.formations,
        losses=history.losses,
        replays=history.replays,
        ranks=ranks,
        swaps=group.history.swaps,
        swap=group.swap,
    )
    if scheduler is None:
        return present
    return replace(
        present,
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        kv_tokens_used=scheduler.kv_used,
        kv_tokens_reserved=scheduler.kv_reserved,
        kv_tokens_kept=scheduler.donors.places,
        kv_tokens=scheduler.kv_tokens,
        steps_in_flight=len(scheduler.in_flight),
        micro_batches=scheduler.micro_batches.count,
    )


def describe_topology(
    group: RankGroup, statistics: EngineStatistics, scheduler: Scheduler | None
) -> dict[str, object]:
    """Epoch, micro-batches in flight, and by rank its layers, bytes and mean step times (ms).

    Formations, losses, replays and restarts are those of all the masters' lives that stages
    remember, and so is the epoch, None while none is known. What /metrics counts begins anew.
    A rank's bubble ratio is the share of its time that it waits for work while there is some.
    """
    in_flight = [] if scheduler is None else scheduler.in_flight.values()
    history, parts = group.history, () if group.served is None else group.served.spec.ranks
    totals = history.totals(len(parts))
    by_rank = zip(parts, statistics.ranks, totals.restarts, strict=False)
    return {
        "epoch": history.epoch or None,
        "formations": totals.formations,
        "losses": totals.losses,
        "replays": totals.replays,
        "micro_batches": statistics.micro_batches,
        "steps": statistics.steps,
        "steps_in_flight": statistics.steps_in_flight,
        "generated_tokens": statistics.generated_tokens,
        "requests_running": statistics.running,
        "requests_waiting": statistics.waiting,
        "kv_tokens": statistics.kv_tokens,
        "kv_tokens_used": statistics.kv_tokens_used,
        "kv_tokens_reserved": statistics.kv_tokens_reserved,
        "kv_tokens_kept": statistics.kv_tokens_kept,
        "ranks": [_describe_rank(part, found, restarts) for part, found, restarts in by_rank],
        "in_flight": [
            {"requests": len(item.step.segments), "tokens": len(item.step.token_ids)}
            for item in in_flight
            if item.step.segments
        ],
        "events": history.describe_events(),
    }


def _describe_rank(part: RankPart, found: RankStatistics, restarts: int) -> dict[str, object]:
    stage, join, cost = found.stage, found.join, found.cost
    busy_s, wait_s = cost.mean_s, cost.wait_s
    return {
        "rank": found.rank,
        "node": "" if join is None else join.node,
        "devices": "" if join is None else join.devices,
        "device_uuid": "" if join is None else join.device_uuid,
        "device_bytes": None if join is None else join.device_bytes,
        "layers": list(part.layers),
        "joined": join is not None,
        "loaded": stage is not None,
        "restarts": restarts,
        "address": stage.address if stage else None,
        "process_id": stage.process_id if stage else None,
        "weight_bytes": stage.weight_bytes if stage else None,
        "kv_bytes": stage.kv_tokens * stage.kv_bytes_per_token if stage else None,
        "dtype": stage.dtype if stage else None,
        "compute_ms": round(busy_s * 1e3, 3),
        "wait_ms": round(wait_s * 1e3, 3),
        "bubble_ratio": round(wait_s / (busy_s + wait_s), 4) if busy_s + wait_s else None,
    }
