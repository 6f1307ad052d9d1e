"""A pipeline in virtual time whose stages take any time, and tell any."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from runner.master.engine.scheduler import STEP_LIMIT_S
from runner.steps import StageTime, Step
from tests.runner.master.engine.virtual_pipeline import VirtualPipeline


@dataclass
class UnrulyPipeline(VirtualPipeline):
    """A stage's step takes the next of `factors` times what its line says; it tells the next of
    `lies` (compute and wait in nanoseconds), or the truth for None. Both start over at their end.
    """

    factors: Sequence[float] = (1.0,)
    lies: Sequence[tuple[int, int] | None] = (None,)
    _factors: Iterator[float] = field(init=False)
    _lies: Iterator[tuple[int, int] | None] = field(init=False)

    def __post_init__(self) -> None:
        self._factors, self._lies = itertools.cycle(self.factors), itertools.cycle(self.lies)
        super().__post_init__()

    def stage_s(self, step: Step) -> float:
        return next(self._factors) * super().stage_s(step)

    def told(self, rank: int, seconds: float) -> StageTime:
        lie = next(self._lies)
        return super().told(rank, seconds) if lie is None else StageTime(rank, *lie)

    def sent(self, step: Step) -> None:
        """Every step is within its bounds when it leaves."""
        lengths = [segment.length for segment in step.segments]
        assert sum(lengths) == len(step.token_ids)
        assert all(1 <= length <= self.budget for length in lengths)
        limit_s = self.scheduler.in_flight[step.number].limit_s
        assert math.isfinite(limit_s)
        assert limit_s >= STEP_LIMIT_S
        assert 1 <= self.micro_batches.count <= self.ranks + 1
        kept = self.scheduler.donors.places
        assert 0 <= self.scheduler.kv_used <= self.scheduler.kv_reserved <= self.kv_tokens - kept

    def leave(self, place: int) -> None:
        """The client of an open request leaves: `place` counts them round and round."""
        numbers = list(self.ledger.open)
        if numbers:
            request = self.ledger.remove(numbers[place % len(numbers)])
            assert request is not None
            self.scheduler.remove(request)
