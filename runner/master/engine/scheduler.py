"""The scheduler: which tokens of which requests make the next step.

Pure and synchronous: it is told what came back and when, and asked for the next step. Decoding
requests go first; a step is filled up with a chunk of a prompt. A decoding request needs its
sampled token back before it can go on, the chunks of a prompt follow one another without waiting.

A request that may be what ends the group is computed with nothing beside it, in no step on its
way, until it has got beyond what is in doubt.

A step that a stage has no memory for comes back aborted, and so may steps behind it. Nothing is
sent until all have come back. Then their requests are computed anew: where slots of ended requests
were kept, without these, else the youngest of the first such step not before others have ended.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from runner.errors import NoMemory, PromptTooLong, RunnerError
from runner.master.engine.donors import Donors
from runner.master.engine.micro_batches import MicroBatches
from runner.master.engine.observed_limits import ObservedLimits
from runner.master.engine.requests import MOST_SHORTAGES, Event, OpenRequest
from runner.master.engine.step_cost import StepCost
from runner.master.engine.waiting_room import WaitingRoom
from runner.steps import Admission, Segment, Step, StepResult

logger = logging.getLogger(__name__)

STEP_LIMIT_S, STEP_LIMIT_FACTOR = 5.0, 8.0
UNKNOWN_STEP_LIMIT_S = 60.0  # for a step larger than any that was measured


@dataclass(frozen=True, slots=True)
class InFlight:
    """A step on its way, `decodes` of its segments decoding; lost when not back in `limit_s`."""

    step: Step
    decodes: int
    submitted_at: float
    limit_s: float


class Scheduler:
    """`kv_tokens` is the smallest rank's number of KV positions, of which requests that run and
    those that are kept may take `fillable` together; `rope_boundary` as in StageInfo.

    Requests are admitted in the order of WaitingRoom, as long as each one's worst case fits, by
    which `kv_reserved` counts those that run.
    """

    def __init__(
        self,
        *,
        ranks: int,
        prefill_token_budget: int,
        max_concurrent_requests: int,
        kv_tokens: int,
        fillable: int,
        rope_boundary: int | None,
        cost: StepCost,
        micro_batches: MicroBatches,
    ) -> None:
        self.kv_tokens = kv_tokens
        self.kv_reserved = 0
        self.donors = Donors()
        self.waiting = WaitingRoom()
        self.running: dict[int, OpenRequest] = {}
        self.in_flight: dict[int, InFlight] = {}
        self.micro_batches = micro_batches
        self._cost = cost
        self._ranks = ranks
        self._limits = ObservedLimits(prefill_token_budget, kv_tokens)
        self._settling = False
        self._max_running, self._fillable = max_concurrent_requests, fillable
        self._rope_boundary = rope_boundary
        self._ready: deque[OpenRequest] = deque()
        self._releases: list[int] = []
        self._alone: OpenRequest | None = None
        self._decode_steps = 0
        self._next_number = 1

    def check(self, prompt_tokens: int, max_new_tokens: int) -> None:
        """Raises PromptTooLong for a request that could never be admitted."""
        if prompt_tokens + max_new_tokens > self.kv_tokens:
            raise PromptTooLong(
                "max_tokens",
                max_new_tokens,
                f"with the prompt's {prompt_tokens} tokens needs {prompt_tokens + max_new_tokens} "
                f"places in the KV cache; the smallest rank has {self.kv_tokens}",
            )

    def take(
        self, *, prefill_token_budget: int, max_concurrent_requests: int, fillable: int
    ) -> None:
        """Other limits from the next step on."""
        self._limits = ObservedLimits(prefill_token_budget, self.kv_tokens)
        self._max_running, self._fillable = max_concurrent_requests, fillable
        self._releases += self.donors.shrink(fillable - self.kv_reserved)

    def submit(self, request: OpenRequest) -> None:
        """Enter a request: a new one, or one that is replayed."""
        self.waiting.add(request)

    def remove(self, request: OpenRequest) -> None:
        """The request ended or its client left: its place is free from the next step on."""
        if request.number not in self.running:
            self.waiting.remove(request)
            return
        self._take_out(request)
        if request.held and not self._limits.short:
            self._releases += self.donors.keep(request)
        elif request.held:
            self._releases.append(request.number)

    def _take_out(self, request: OpenRequest) -> None:
        if request is self._alone:
            self._alone = None
        del self.running[request.number]
        self.kv_reserved -= request.places
        self.donors.give_back(request)
        if request in self._ready:
            self._ready.remove(request)

    def next_step(self, now: float) -> Step | None:
        """The next step to submit, or None while there is nothing to do or enough is in flight."""
        if self._settling and self.in_flight:
            return None
        self._settling = False
        self._start_waiting()
        if self._alone is not None and self.being_computed().keys() - {self._alone.number}:
            return None
        decodes = self._take_decodes()
        admissions: list[Admission] = []
        segments = [self._decode(request) for request in decodes]
        if len(self.in_flight) <= self._ranks:
            # However many decode, prompts come on.
            budget = max(self._limits.least, self._limits.budget - len(segments))
            self._add_chunks(budget, segments, admissions)
        if not segments and not self._releases:
            return None
        ids: list[int] = []
        for segment in segments:
            ids += self.running[segment.request].ids(segment.start, segment.length)
        releases, self._releases = tuple(self._releases), []
        step = Step(self._next_number, tuple(segments), ids, tuple(admissions), releases)
        self._decode_steps += bool(decodes)
        self._note(step, len(decodes), now)
        return step

    def probe(self, now: float) -> Step:
        """A step without tokens: shows that the pipeline turns."""
        step = Step(self._next_number, (), ())
        self._note(step, 0, now)
        return step

    def returned(
        self, result: StepResult, now: float
    ) -> list[tuple[OpenRequest, Event | RunnerError]]:
        """Take a step's tokens; those of requests that are gone or known already are dropped.

        The last event of a request has a finish_reason or is an error: whoever asked removes it.
        """
        flight = self.in_flight.pop(result.number, None)
        if flight is None:
            return []
        step = flight.step
        self._decode_steps -= flight.decodes > 0
        if result.aborted:
            return self._aborted(flight)
        self._limits.computed()
        if step.segments:
            self._cost.observe(len(step.token_ids), result.times, now - flight.submitted_at)
        events = self._prompts_computed(result, step)
        tokens = 0
        for token in result.tokens:
            request = self.running.get(token.request)
            event = request.accept(token) if request is not None else None
            if request is not None and event is not None:
                tokens += 1
                self._ready.append(request)
                events.append((request, event))
        events += self._without_token(result, step)
        if self._alone is not None and not self._alone.tried_alone:
            self._alone = None
        if step.segments:
            prefilling = sum(not request.prefilled for request in self.running.values())
            self.micro_batches.returned(
                len(self.running) - prefilling,
                tokens,
                pure=prefilling == 0 and len(step.token_ids) == flight.decodes,
                now=now,
            )
        return events

    def _without_token(
        self, result: StepResult, step: Step
    ) -> list[tuple[OpenRequest, RunnerError]]:
        """Requests with a grammar: whose token was not to be had yet is asked again."""
        faults = {refusal.request: refusal.fault for refusal in result.refused}
        ended: list[tuple[OpenRequest, RunnerError]] = []
        for segment in step.segments:
            request = self.running.get(segment.request)
            if request is None or request.grammar is None:
                continue
            if not segment.sample or not request.awaiting:
                continue
            if (fault := faults.get(request.number)) is not None:
                ended.append((request, request.grammar.refusal(fault, len(request.emitted))))
            else:
                request.ask_again()
                self._ready.append(request)
        return ended

    def _prompts_computed(
        self, result: StepResult, step: Step
    ) -> list[tuple[OpenRequest, Event | RunnerError]]:
        for token in result.scored:
            request = self.running.get(token.request)
            if request is not None:
                request.accept_score(token)
        events: list[tuple[OpenRequest, Event | RunnerError]] = []
        for segment in step.segments:
            request = self.running.get(segment.request)
            if request is not None:
                end = segment.start + segment.length
                request.came_back(end)
                if (event := request.prompt_came_back(end)) is not None:
                    events.append((request, event))
        return events

    def _aborted(self, flight: InFlight) -> list[tuple[OpenRequest, Event | RunnerError]]:
        """A stage computes none of the step's requests until it is admitted again.

        What comes back aborted behind the first one, before all is settled, is its consequence.
        """
        first, self._settling = not self._settling, True
        step = flight.step
        requests = [self.running[number] for number in self._running_in(step)]
        for request in requests:
            request.prefill_again()
        kept = self._forget_kept()
        if not first or not requests or kept:
            return []
        tokens = len(step.token_ids)
        if len(self.running) > 1:
            youngest = sorted(requests, key=lambda request: request.number)
            self._wait_again(youngest[len(youngest) // 2 :])
            self._limits.fewer_places(self.kv_reserved)
        elif tokens <= self._limits.least:
            requests[0].shortages += 1
            if requests[0].shortages == MOST_SHORTAGES:
                return [(requests[0], _too_large(requests[0]))]
        if tokens > flight.decodes:
            self._limits.smaller_steps(tokens)
        return []

    def _forget_kept(self) -> bool:
        """Memory is short, and what is kept may be of a step that was not computed. Whether any
        was."""
        released = self.donors.clear()
        self._releases += released
        for request in self.running.values():
            self._count_capacity(request)
        self._limits.memory_is_short()
        return bool(released)

    def _count_capacity(self, request: OpenRequest) -> None:
        self.kv_reserved -= request.places - request.capacity
        request.places = request.capacity

    def _running_in(self, step: Step) -> list[int]:
        return [item.request for item in step.segments if item.request in self.running]

    def _wait_again(self, requests: Sequence[OpenRequest]) -> None:
        """Before those that never ran."""
        names = [request.request_id or f"number {request.number}" for request in requests]
        logger.warning("a stage is out of memory: requests wait again: %s", ", ".join(names))
        for request in requests:
            self._take_out(request)
            self._releases.append(request.number)
            request.start_over()
            self.waiting.add(request)

    @property
    def kv_used(self) -> int:
        """KV positions that hold something, of those reserved."""
        return sum(request.sent for request in self.running.values())

    def being_computed(self) -> dict[int, int]:
        """The requests in the steps on their way, by number: up to which position."""
        found: dict[int, int] = {}
        for flight in self.in_flight.values():
            for segment in flight.step.segments:
                end = segment.start + segment.length
                found[segment.request] = max(end, found.get(segment.request, 0))
        return found

    def _start_waiting(self) -> None:
        while self._alone is None and self.waiting and len(self.running) < self._max_running:
            request = self.waiting.next
            # One alone is always tried: else it would wait for ever.
            places = self._limits.places if self.running else self.kv_tokens
            if self.kv_reserved + request.capacity > places:
                return
            self.waiting.take()
            request.had_place = True
            self.running[request.number] = request
            self._releases += self.donors.make_room(
                request, self._fillable - self.kv_reserved, long_class=self._is_long(request)
            )
            self.kv_reserved += request.places
            if request.tried_alone:
                self._alone = request

    def _take_decodes(self) -> list[OpenRequest]:
        """One micro-batch of those whose token has come back, oldest first.

        Who is tried alone is no longer so when its token comes back: until then nobody decodes.
        """
        count = self.micro_batches.count
        if self._alone is not None or self._decode_steps >= count or not self._ready:
            return []
        prefilling = sum(not request.prefilled for request in self.running.values())
        size = max(1, -(-(len(self.running) - prefilling) // count))
        chosen = []
        for _ in range(min(size, len(self._ready))):
            request = self._ready.popleft()
            if self._crosses_boundary(request):
                request.prefill_again()
            else:
                chosen.append(request)
        return chosen

    def _crosses_boundary(self, request: OpenRequest) -> bool:
        """Rotary factors change with the total length: what is cached was computed with others."""
        return self._is_long(request) and not request.long_class

    def _is_long(self, request: OpenRequest) -> bool:
        return self._rope_boundary is not None and request.known > self._rope_boundary

    def _decode(self, request: OpenRequest) -> Segment:
        start = request.sent
        request.sent, request.awaiting = request.known, True
        return Segment(request.number, start, 1, request.known, sample=True)

    def _add_chunks(
        self, budget: int, segments: list[Segment], admissions: list[Admission]
    ) -> None:
        began = {segment.request: segment.start for segment in segments}
        for request in self.running.values() if self._alone is None else (self._alone,):
            if budget <= 0:
                return
            if request.prefilled or (
                request.sent == 0 and not self._admit(request, began, admissions)
            ):
                continue
            segment = self._chunk(request, budget)
            began[request.number] = segment.start
            segments.append(segment)
            budget -= segment.length

    def _admit(
        self, request: OpenRequest, began: dict[int, int], admissions: list[Admission]
    ) -> bool:
        """With what others have of its beginning; False where it is better sent with the next
        step."""
        is_long = self._is_long(request)
        reuse = self.donors.reuse(request, self.running.values(), began, long_class=is_long)
        if reuse is None:
            return False
        if reuse.ends:
            self._releases.append(reuse.donor)
        self._count_capacity(request)
        request.held, request.long_class, request.sent = True, is_long, reuse.length
        if not request.emitted:
            request.reused = min(reuse.length, len(request.prompt_ids))
        left = request.known - reuse.length
        request.chunk_tokens = self._cost.chunk_tokens(left, self._limits.budget)
        admissions.append(request.admission(reuse.donor, reuse.length))
        return True

    def _chunk(self, request: OpenRequest, budget: int) -> Segment:
        start = request.sent
        length = min(budget, request.chunk_tokens, request.known - start)
        request.sent += length
        request.prefilled = request.sent == request.known
        request.awaiting = request.prefilled and request.max_new_tokens > 0
        scored = request.scored_rows(start, length)
        following = request.prompt_ids[request.sent] if scored == length else 0
        return Segment(
            request.number, start, length, request.known, request.awaiting, scored, following
        )

    def overdue(self, now: float) -> str | None:
        """Which step should have come back by now, in words; None when all is well."""
        for number, flight in self.in_flight.items():
            spent = now - flight.submitted_at
            if spent > flight.limit_s:
                return f"step {number} has not come back in {spent:.1f} s"
        return None

    def _note(self, step: Step, decodes: int, now: float) -> None:
        """Enter a step. It comes back after those before it, so its limit is not below theirs."""
        self._next_number += 1
        cost, tokens = self._cost, len(step.token_ids)
        ahead = sum(cost.slowest_s(len(item.step.token_ids)) for item in self.in_flight.values())
        longest = cost.longest_s(tokens) if tokens else cost.overhead_s
        if longest is None:
            limit_s = UNKNOWN_STEP_LIMIT_S
        else:
            limit_s = max(STEP_LIMIT_S, STEP_LIMIT_FACTOR * (ahead + longest))
        limit_s = max([limit_s, *(item.limit_s for item in self.in_flight.values())])
        self.in_flight[step.number] = InFlight(step, decodes, now, limit_s)


def _too_large(request: OpenRequest) -> NoMemory:
    return NoMemory(
        f"a rank is out of memory for this request of {len(request.prompt_ids)} prompt tokens and"
        f" {request.max_new_tokens} new ones, with nothing beside it: ask for fewer tokens, or give"
        " the ranks more memory"
    )
