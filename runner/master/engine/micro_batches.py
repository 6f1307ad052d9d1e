"""How many micro-batches decode at the same time: decided from what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from runner.master.engine.step_cost import StepCost

SETTLE_STEPS = 2  # rounds after a change that do not count
WINDOW_STEPS = 6  # decoding steps that make one measurement
FRESH_STEPS = 8000  # a measurement older than this is made again
CLEARLY_BETTER = 1.03
SMOOTHING = 0.5


@dataclass(slots=True)
class _Measured:
    tokens_per_s: float
    at_step: int


class MicroBatches:
    """`count` is the number in force, 1 .. ranks + 1.

    The cost model's prediction says what to try first; the numbers are judged by their measured
    throughput, kept per load (requests, in powers of two) because stages that share cores or
    memory bandwidth slow each other down in ways that no line fits.
    """

    def __init__(self, cost: StepCost) -> None:
        self.count = 1
        self._cost = cost
        self._measured: dict[tuple[int, int], _Measured] = {}
        self._steps = 0
        self._requests = 0
        self._window_began: float | None = None
        self._window_tokens = 0
        self._window_steps = 0

    def returned(self, requests: int, tokens: int, *, pure: bool, now: float) -> None:
        """A step came back with `tokens` new tokens while `requests` were decoding.

        `pure`: nothing was being prefilled. `now` in seconds, monotonic.
        """
        self._steps += 1
        if requests == 0:
            self._restart()
            return
        if not pure or requests != self._requests:
            changed = self._load(requests) != self._load(self._requests)
            self._requests = requests
            if not pure or changed:
                self._restart()
            if changed:
                self.count = self._best(requests)
            return
        self._window_steps += 1
        settle = SETTLE_STEPS * self.count
        if self._window_steps == settle:
            self._window_began, self._window_tokens = now, 0
        elif self._window_steps > settle:
            self._window_tokens += tokens
        if self._window_steps >= settle + WINDOW_STEPS * self.count:
            self._close_window(now)

    def _close_window(self, now: float) -> None:
        assert self._window_began is not None
        speed = self._window_tokens / max(now - self._window_began, 1e-9)
        key = (self._load(self._requests), self.count)
        before = self._measured.get(key)
        if before is not None and self._steps - before.at_step < FRESH_STEPS:
            speed = before.tokens_per_s * SMOOTHING + speed * (1 - SMOOTHING)
        self._measured[key] = _Measured(speed, self._steps)
        self._restart()
        self.count = self._best(self._requests)

    def _best(self, requests: int) -> int:
        """A number not measured lately, the most promising first; else the fastest measured."""
        counts = range(1, min(self._cost.ranks + 1, requests) + 1)
        if not self._cost.largest_tokens:
            return min(self._cost.ranks, len(counts))
        speeds = {count: self._speed(count, requests) for count in counts}
        unknown = [count for count in counts if speeds[count] is None]
        if unknown:
            return min(unknown, key=lambda count: self._cost.round_s(count, requests))
        best = max(speeds, key=lambda count: speeds[count] or 0.0)
        current = speeds.get(self.count) or 0.0
        return best if (speeds[best] or 0.0) > current * CLEARLY_BETTER else self.count

    def _speed(self, count: int, requests: int) -> float | None:
        measured = self._measured.get((self._load(requests), count))
        if measured is None or self._steps - measured.at_step > FRESH_STEPS:
            return None
        return measured.tokens_per_s

    def _restart(self) -> None:
        self._window_began = None
        self._window_steps = self._window_tokens = 0

    @staticmethod
    def _load(requests: int) -> int:
        return requests.bit_length()
