"""A pipeline in virtual time: stages that take fixed + per_token * tokens, on cores of their own
or sharing some."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from runner.master.engine.micro_batches import MicroBatches
from runner.master.engine.requests import GenerationRequest, RequestLedger, TokenEvent
from runner.master.engine.scheduler import Scheduler
from runner.master.engine.step_cost import StepCost
from runner.sampling_parameters import SamplingParameters
from runner.steps import SampledToken, StageTime, Step, StepResult

RETURN_S = 0.0002


@dataclass
class VirtualPipeline:
    """`cores` stages run at the same time; `fixed_s` and `per_token_s` are those of a stage.

    A subclass may have other times (`stage_s`), and ranks that do not tell the truth (`told`).
    """

    ranks: int
    fixed_s: float
    per_token_s: float
    cores: int
    budget: int = 512
    only: int | None = None  # a fixed number of micro-batches
    kv_tokens: int = 10**9
    max_running: int = 256
    rope_boundary: int | None = None
    return_s: float = RETURN_S
    alike: bool = False  # all prompts begin with the same ids

    def __post_init__(self) -> None:
        self.cost = StepCost(self.ranks)
        self.micro_batches = MicroBatches(self.cost)
        self.ledger = RequestLedger()
        self.now = 0.0
        self.delivered = self.submitted = 0
        self.first_token_at: float | None = None
        self._entered = 0
        self.form()

    def form(self) -> None:
        """A new epoch, the first one too: what was under way is lost, open requests start over."""
        self._free = [self.now] * self.ranks
        self._core_free = [self.now] * self.cores
        self._moving: list[tuple[float, int, int, Step, list[float]]] = []
        self.scheduler = Scheduler(
            ranks=self.ranks,
            prefill_token_budget=self.budget,
            max_concurrent_requests=self.max_running,
            kv_tokens=self.kv_tokens,
            fillable=self.kv_tokens,
            rope_boundary=self.rope_boundary,
            cost=self.cost,
            micro_batches=self.micro_batches,
        )
        for request in self.ledger.in_turn():
            request.start_over()
            self.scheduler.submit(request)

    def submit(self, prompt_tokens: int, new_tokens: int) -> None:
        first = 0 if self.alike else 10_000 * self.submitted
        self.submitted += 1
        prompt = tuple(range(first, first + prompt_tokens))
        request = GenerationRequest(prompt, new_tokens, SamplingParameters(seed=1))
        self.scheduler.submit(self.ledger.add(request, self._deliver))

    def _deliver(self, _event: object) -> None:
        self.delivered += 1

    def run(self, seconds: float) -> float:
        """Tokens per second over `seconds` from now, or until nothing is left to do."""
        began, delivered = self.now, self.delivered
        while self.now - began < seconds and self.turn():
            pass
        return (self.delivered - delivered) / max(self.now - began, 1e-9)

    def turn(self) -> bool:
        """Send what can be sent, then one stage's step; False where nothing is left to do."""
        if self.only is not None:
            self.micro_batches.count = self.only
        while (step := self.scheduler.next_step(self.now)) is not None:
            self.sent(step)
            heapq.heappush(self._moving, (self.now, self._entered, 0, step, []))
            self._entered += 1
        if not self._moving:
            return False
        arrived, place, rank, step, times = heapq.heappop(self._moving)
        if rank == self.ranks:
            self.now = max(self.now, arrived)
            self._return(step, times)
        else:
            self._compute(arrived, place, rank, step, times)
        return True

    def sent(self, step: Step) -> None:
        """A step enters the pipeline."""

    def stage_s(self, step: Step) -> float:
        return self.fixed_s + self.per_token_s * len(step.token_ids)

    def told(self, rank: int, seconds: float) -> StageTime:
        return StageTime(rank, int(seconds * 1e9), 0)

    def _compute(
        self, arrived: float, place: int, rank: int, step: Step, times: list[float]
    ) -> None:
        core = min(range(self.cores), key=lambda index: self._core_free[index])
        begin = max(arrived, self._free[rank])
        # A stage that waits for a core measures the wait as its own time.
        end = max(begin, self._core_free[core]) + self.stage_s(step)
        self._free[rank] = self._core_free[core] = end
        back = self.return_s if rank == self.ranks - 1 else 0.0
        entry = (end + back, place, rank + 1, step, [*times, end - begin])
        heapq.heappush(self._moving, entry)

    def _return(self, step: Step, times: list[float]) -> None:
        tokens = tuple(
            SampledToken(segment.request, segment.start + segment.length, 5)
            for segment in step.segments
            if segment.sample
        )
        stage_times = tuple(self.told(rank, seconds) for rank, seconds in enumerate(times))
        result = StepResult(step.number, tokens, stage_times)
        for request, event in self.scheduler.returned(result, self.now):
            assert isinstance(event, TokenEvent)
            if self.first_token_at is None:
                self.first_token_at = self.now
            request.deliver(event)
            if event.finish_reason is not None:
                self.ledger.remove(request.number)
                self.scheduler.remove(request)
