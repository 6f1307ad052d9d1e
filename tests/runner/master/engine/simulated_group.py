"""A rank group in virtual time, whose stages are slow, stuck, short of memory and killed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from runner.stage.process.forgotten import Forgotten
from runner.steps import Admission, SampledToken, Segment, StageTime, Step, StepResult
from tests.runner.master.engine.stand_in_group import StandInGroup

DEADLY = 40_000  # the first of the token ids that a stage dies of
NEEDED_PER_TOKEN = 2.0  # of activations, in KV positions
_PRIME = 2**61 - 1


BEGIN = 7  # what stands for no ids


def after(state: int, token_id: int) -> int:
    """What stands for all ids so far: any change of them changes it."""
    return (state * 1_000_033 + token_id + 1) % _PRIME


def sampled(state: int, seed: int, choice: int) -> int:
    return (after(after(state, seed), choice) >> 20) % 1000


def logprob(state: int, token_id: int) -> float:
    return -float((state * 31 + token_id) % 1009) / 64


@dataclass
class SimulatedSlot:
    """`states`: for each position that is written, what stands for all ids up to it. `long`: their
    total length was above `rope_boundary` when they were computed."""

    capacity: int
    states: list[int]
    long: bool = False


@dataclass
class SimulatedStage:
    """What one stage holds, by request."""

    kv_tokens: int
    rope_boundary: int | None = None
    held: dict[int, SimulatedSlot] = field(default_factory=dict)
    forgotten: Forgotten = field(default_factory=Forgotten)
    free_at: float = 0.0

    def compute(self, step: Step, room: float, *, aborted: bool) -> bool:
        """The rules of a real stage; False where the step goes on aborted."""
        if aborted or self.forgotten.keep_from(step) or self._needed(step) > room:
            self.forgotten.aborted(step)
            for request in (*step.releases, *(segment.request for segment in step.segments)):
                self.held.pop(request, None)
            return False
        self.forgotten.computed(step)
        self._admit_and_release(step)
        assert sum(slot.capacity for slot in self.held.values()) <= self.kv_tokens
        first = 0
        for segment in step.segments:
            ids = step.token_ids[first : first + segment.length]
            self._write(self.held[segment.request], segment, ids)
            first += segment.length
        return True

    def _needed(self, step: Step) -> float:
        """Places in memory; nothing where the step only releases."""
        if not step.segments:
            return 0
        kept = {item.request: item.capacity for item in step.admissions}
        others = (
            slot.capacity
            for request, slot in self.held.items()
            if request not in kept and request not in step.releases
        )
        return sum(others) + sum(kept.values()) + NEEDED_PER_TOKEN * len(step.token_ids)

    def _admit_and_release(self, step: Step) -> None:
        donors = {admission.donor for admission in step.admissions if admission.reused}
        for request in step.releases:
            if request not in donors:
                self.held.pop(request, None)
        for admission in step.admissions:
            slot = SimulatedSlot(admission.capacity, [])
            if admission.reused:
                donor = self.held[admission.donor]
                slot.long, slot.states = donor.long, donor.states[: admission.reused]
                assert len(slot.states) == admission.reused, "positions that were never computed"
            self.held[admission.request] = slot
        for request in step.releases:
            self.held.pop(request, None)

    def _write(self, slot: SimulatedSlot, segment: Segment, ids: Sequence[int]) -> None:
        states = slot.states
        assert len(states) == segment.start, "a position that was never computed is attended to"
        # Rotary factors are of the total length: what is cached must be of the same ones.
        is_long = self.rope_boundary is not None and segment.total > self.rope_boundary
        assert not segment.start or is_long == slot.long, "other rotary factors"
        slot.long = is_long
        state = states[-1] if states else BEGIN
        for token_id in ids:
            state = after(state, token_id)
            states.append(state)
        assert len(states) <= slot.capacity


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
        self._admissions: dict[int, Admission] = {}
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
            self._admissions.pop(request, None)
        return StepResult(step.number, (), tuple(times), aborted=True), now

    def _sample(self, step: Step, times: tuple[StageTime, ...]) -> StepResult:
        """The last stage's; every stage has to have the same ids."""
        for request in step.releases:
            self._admissions.pop(request, None)
        self._admissions.update({item.request: item for item in step.admissions})
        tokens, scored = [], []
        wanted = {(request, place): token_id for request, place, token_id in step.following()}
        for segment in step.segments:
            request, admission = segment.request, self._admissions[segment.request]
            states = self._stages[-1].held[request].states
            assert {stage.held[request].states[-1] for stage in self._stages} == {states[-1]}
            for position in range(segment.start + 1, segment.start + segment.scored + 1):
                own = wanted[request, position]
                score = logprob(states[position - 1], own)
                scored.append(SampledToken(request, position, own, score))
            if segment.sample:
                token_id = sampled(states[-1], admission.seed, admission.choice)
                reported = admission.sampling.logprobs >= 0
                value = logprob(states[-1], token_id) if reported else None
                tokens.append(SampledToken(request, len(states), token_id, value))
        return StepResult(step.number, tuple(tokens), times, tuple(scored))
