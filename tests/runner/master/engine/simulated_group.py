"""A rank group in virtual time, whose stages are slow, stuck, short of memory and killed."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from runner.stage.process.forgotten import Forgotten
from runner.steps import SampledToken, Segment, StageTime, Step, StepResult
from tests.runner.master.engine.stand_in_group import StandInGroup

DEADLY = 40_000  # the first of the token ids that a stage dies of
NEEDED_PER_TOKEN = 2.0  # of activations, in KV positions
_PRIME = 2**61 - 1


def begin(seed: int, choice: int) -> int:
    return (seed * 1_000_003 + choice) % _PRIME


def after(state: int, token_id: int) -> int:
    """What stands for all ids so far, seed and choice: any change of them changes it."""
    return (state * 1_000_033 + token_id + 1) % _PRIME


def sampled(state: int) -> int:
    return (state >> 20) % 1000


def logprob(state: int, token_id: int) -> float:
    return -float((state * 31 + token_id) % 1009) / 64


@dataclass
class SimulatedStage:
    """What one stage holds: of each request its capacity, and how many positions are written.

    `written_long`: those whose total length was above `rope_boundary` when that was computed.
    """

    kv_tokens: int
    rope_boundary: int | None = None
    held: dict[int, list[int]] = field(default_factory=dict)
    written_long: set[int] = field(default_factory=set)
    forgotten: Forgotten = field(default_factory=Forgotten)
    free_at: float = 0.0

    def compute(self, step: Step, room: float, *, aborted: bool) -> bool:
        """The rules of a real stage; False where the step goes on aborted."""
        for request in step.releases:
            self.held.pop(request, None)
        if not aborted and not self.forgotten.keep_from(step):
            kept = {item.request: item.capacity for item in step.admissions}
            others = (slot[0] for request, slot in self.held.items() if request not in kept)
            needed = sum(others) + sum(kept.values()) + NEEDED_PER_TOKEN * len(step.token_ids)
            aborted = bool(step.segments) and needed > room
        else:
            aborted = True
        if aborted:
            self.forgotten.aborted(step)
            for segment in step.segments:
                self.held.pop(segment.request, None)
            return False
        self.forgotten.computed(step)
        for admission in step.admissions:
            self.held[admission.request] = [admission.capacity, 0]
        assert sum(slot[0] for slot in self.held.values()) <= self.kv_tokens
        for segment in step.segments:
            slot = self.held[segment.request]
            assert slot[1] == segment.start, "a position that was never computed is attended to"
            self._note_length(segment)
            slot[1] += segment.length
            assert slot[1] <= slot[0]
        return True

    def _note_length(self, segment: Segment) -> None:
        """Rotary factors are of the total length: what is cached must be of the same ones."""
        long = self.rope_boundary is not None and segment.total > self.rope_boundary
        if segment.start:
            assert long == (segment.request in self.written_long), "other rotary factors"
        elif long:
            self.written_long.add(segment.request)
        else:
            self.written_long.discard(segment.request)


class SimulatedGroup(StandInGroup):
    """Steps travel through stages; what happens to them on the way is `chance`'s.

    `room` is each stage's memory in KV positions, `squeezed` for a while what is left of it.
    """

    def __init__(
        self,
        chance: random.Random,
        *,
        ranks: int,
        kv_tokens: int,
        room: float,
        rope_boundary: int | None,
    ) -> None:
        super().__init__(ranks=ranks, kv_tokens=kv_tokens, rope_boundary=rope_boundary)
        self._chance, self._room = chance, room
        self._loop = asyncio.get_running_loop()
        self.count = self.kills = self.stuck_steps = self.aborted = 0
        self.calm = False
        self._life = 0
        self._squeezed_until = self._slow_until = 0
        self.squeeze = 1.0

    def form(self, *, trial: bool = False) -> None:
        self._life += 1
        self._stages = [self._new_stage() for _ in range(self.ranks)]
        self._ids: dict[int, tuple[int, int]] = {}
        self._stuck = False
        self._last_back = 0.0
        super().form(trial=trial)

    def _new_stage(self) -> SimulatedStage:
        return SimulatedStage(self.kv_tokens, self.rope_boundary, free_at=self._loop.time())

    def lose(self, reason: str = "rank 1: killed", *, announced: bool = False) -> None:
        self._life += 1
        super().lose(reason, announced=announced)
        self._loop.call_later(self._chance.uniform(0.1, 5), self.form)

    def submit(self, step: Step) -> None:
        assert self.state == "ready"
        self.count += 1
        if self._stuck:
            return
        dice = self._chance.random()
        if self.calm or (dice < 0.0006 and self._one_is_in_doubt()):
            pass  # else it ends, through no fault of its own
        elif dice < 0.0001:
            self.stuck_steps += 1
            self._stuck = True
            return
        elif dice < 0.0006:
            self.kills += 1
            delay = self._chance.uniform(0, 0.1)
            life, announced = self._life, self._chance.random() < 0.3
            self._loop.call_later(delay, self._die, life, "rank 1: killed", announced)
        if any(token_id >= DEADLY for token_id in step.token_ids):
            self._loop.call_later(0.01, self._die, self._life, "rank 0: died", False)
            self._stuck = True
            return
        result, back = self._travel(step)
        self._loop.call_at(back, self._come_back, self._life, result)

    def _one_is_in_doubt(self) -> bool:
        ledger = self.listener._ledger.open.values()  # type: ignore[attr-defined]
        return any(entry.losses for entry in ledger)

    def _die(self, life: int, reason: str, announced: bool) -> None:
        if life == self._life:
            self.lose(reason, announced=announced)

    def _come_back(self, life: int, result: StepResult) -> None:
        if life == self._life:
            self.listener.step_returned(result)

    def _room_now(self) -> float:
        if self.count > self._squeezed_until and self._chance.random() < 0.003:
            self._squeezed_until = self.count + self._chance.randrange(5, 300)
            self.squeeze = self._chance.uniform(0.02, 1)
        squeezed = self.count <= self._squeezed_until and not self.calm
        return self._room * (self.squeeze if squeezed else 1.0)

    def _travel(self, step: Step) -> tuple[StepResult, float]:
        chance, now = self._chance, self._loop.time()
        if self.count > self._slow_until and chance.random() < 0.0003:
            self._slow_until = self.count + chance.randrange(1, 20)
        factor = chance.uniform(0.7, 1.5) * (8 if self.count <= self._slow_until else 1)
        room, short = self._room_now(), chance.randrange(self.ranks)
        computed, times = True, []
        for rank, stage in enumerate(self._stages):
            began = max(now, stage.free_at)
            computed = stage.compute(
                step, room if rank == short else self._room, aborted=not computed
            )
            spent = factor * (0.002 + 0.0001 * len(step.token_ids)) if computed else 1e-5
            now = stage.free_at = began + spent
            times.append(StageTime(rank, int(spent * 1e9), 0))
        self.aborted += not computed
        self._last_back = now = max(now + 0.0002, self._last_back + 1e-6)
        if computed:
            return self._sample(step, tuple(times)), now
        for request in (*step.releases, *(segment.request for segment in step.segments)):
            self._ids.pop(request, None)
        return StepResult(step.number, (), tuple(times), aborted=True), now

    def _sample(self, step: Step, times: tuple[StageTime, ...]) -> StepResult:
        """The last stage's; `_ids` has what stands for each request's ids, and its logprobs."""
        for request in step.releases:
            self._ids.pop(request, None)
        for item in step.admissions:
            self._ids[item.request] = begin(item.seed, item.choice), item.sampling.logprobs
        tokens, scored, first = [], [], 0
        wanted = {(request, place): token_id for request, place, token_id in step.following()}
        for segment in step.segments:
            state, reported = self._ids[segment.request]
            for place in range(segment.length):
                state = after(state, step.token_ids[first + place])
                position = segment.start + place + 1
                if place < segment.scored:
                    own = wanted[segment.request, position]
                    scored.append(SampledToken(segment.request, position, own, logprob(state, own)))
            first += segment.length
            self._ids[segment.request] = state, reported
            if segment.sample:
                position = segment.start + segment.length
                token_id = sampled(state)
                value = logprob(state, token_id) if reported >= 0 else None
                tokens.append(SampledToken(segment.request, position, token_id, value))
        return StepResult(step.number, tuple(tokens), times, tuple(scored))
