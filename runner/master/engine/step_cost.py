"""What steps cost, learned from their measured times, and what follows from it.

A stage's time for a step of t tokens is taken as fixed + per_token * t: the weights are read once
a step, whatever is in it. Both are fitted by least squares with exponential forgetting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from runner.steps import StageTime

FORGET = 0.97  # weight of the past at each new step
MIN_CHUNK = 32
FIRST_CHUNK = 128  # before anything is measured
ROUNDING = 1e-9  # a difference below this share of what it is taken from is rounding
LONGEST_FORGET = 0.98  # of a size's longest time, at each new step of that size


@dataclass(slots=True)
class StageCost:
    """The fitted line of one stage, in seconds."""

    weight: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    tokens_squared: float = 0.0
    product: float = 0.0
    wait_s: float = 0.0
    steps_total: int = 0
    compute_total_s: float = 0.0
    wait_total_s: float = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        self.weight = self.weight * FORGET + 1
        self.tokens = self.tokens * FORGET + tokens
        self.seconds = self.seconds * FORGET + seconds
        self.tokens_squared = self.tokens_squared * FORGET + tokens * tokens
        self.product = self.product * FORGET + tokens * seconds
        self.steps_total += 1
        self.compute_total_s += seconds

    def observe_wait(self, seconds: float) -> None:
        self.wait_s += (seconds - self.wait_s) * (1 - FORGET)
        self.wait_total_s += seconds

    def line(self) -> tuple[float, float]:
        """(fixed, per token) in seconds; both are finite, neither is negative."""
        if self.weight == 0:
            return 0.0, 0.0
        mean_tokens, mean_seconds = self.tokens / self.weight, self.seconds / self.weight
        variance = self.tokens_squared / self.weight - mean_tokens**2
        if variance < 0.01 * max(1.0, mean_tokens):
            return mean_seconds, 0.0
        slope = (self.product / self.weight - mean_tokens * mean_seconds) / variance
        slope = min(max(slope, 0.0), mean_seconds / mean_tokens)
        fixed = mean_seconds - slope * mean_tokens
        # Where all is per token, the two are equal but for their last bits: what is left may be
        # below zero, or so small above it that what is divided by it has no meaning.
        return (fixed if fixed > mean_seconds * ROUNDING else 0.0), slope

    def predict(self, tokens: float) -> float:
        fixed, per_token = self.line()
        return fixed + per_token * tokens

    @property
    def mean_s(self) -> float:
        return self.seconds / self.weight if self.weight else 0.0


@dataclass
class StepCost:
    """The cost of steps over all stages. Times are in seconds."""

    ranks: int
    stages: list[StageCost] = field(init=False)
    overhead_s: float = 0.0
    largest_tokens: int = 0
    _longest: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stages = [StageCost() for _ in range(self.ranks)]

    def of(self, rank: int) -> StageCost:
        """Nothing measured for a rank that it does not know."""
        return self.stages[rank] if rank < len(self.stages) else StageCost()

    def observe(self, tokens: int, times: Sequence[StageTime], round_trip_s: float) -> None:
        """One step of `tokens` tokens that has come back after `round_trip_s`."""
        busy = 0.0
        for time in times:
            # No stage computes for longer than the step was away. A wrong clock's centuries would
            # be forgotten slowly, and no lost step be found until then.
            seconds = min(time.compute_ns / 1e9, max(0.0, round_trip_s))
            busy += seconds
            stage = self.stages[time.rank]
            stage.observe(tokens, seconds)
            # Before the step was sent there was nothing to do: that was no bubble.
            stage.observe_wait(min(time.wait_ns / 1e9, max(0.0, round_trip_s - seconds)))
        size = tokens.bit_length()
        self._longest[size] = max(busy, self._longest.get(size, 0.0) * LONGEST_FORGET)
        outside = max(0.0, round_trip_s - busy)
        if self.largest_tokens:
            # The shortest seen counts: the rest is queueing behind other steps.
            outside = min(outside, self.overhead_s * 1.01)
        self.overhead_s = outside
        self.largest_tokens = max(self.largest_tokens, tokens)

    def step_s(self, tokens: float) -> float:
        """A step's way through an idle pipeline."""
        return sum(stage.predict(tokens) for stage in self.stages) + self.overhead_s

    def longest_s(self, tokens: int) -> float | None:
        """What a step may take when all goes well; None where none as large was measured.

        The line forgets: after a long answer it knows decoding steps only, and would have a chunk
        of the next prompt cost no more than one of those. So does a long context make a step
        slower than its tokens say.
        """
        sizes = [size for size in self._longest if size >= tokens.bit_length()]
        if not sizes:
            return None
        return max(self._longest[min(sizes)], self.step_s(tokens))

    def slowest_s(self, tokens: float) -> float:
        return max(stage.predict(tokens) for stage in self.stages)

    def round_s(self, micro_batches: int, requests: int) -> float:
        """One token for each of `requests`, decoding in `micro_batches` parts."""
        tokens = math.ceil(requests / micro_batches)
        return max(micro_batches * self.slowest_s(tokens), self.step_s(tokens))

    def chunk_tokens(self, prompt_tokens: int, budget: int) -> int:
        """How many tokens of a prompt go into one step.

        With k chunks over R stages a prompt takes (k + R - 1) * (fixed + per_token * length / k),
        which is least at k = sqrt((R - 1) * per_token * length / fixed).
        """
        if self.ranks == 1:
            return budget
        if not self.largest_tokens:
            return min(budget, FIRST_CHUNK)
        slowest = max(self.stages, key=lambda stage: stage.predict(budget))
        fixed, per_token = slowest.line()
        if per_token == 0 or fixed == 0:
            return min(budget, FIRST_CHUNK)
        chunks = math.sqrt((self.ranks - 1) * per_token * prompt_tokens / fixed)
        return min(budget, max(MIN_CHUNK, math.ceil(prompt_tokens / max(1.0, chunks))))
