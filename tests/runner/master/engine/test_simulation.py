"""The engine over stages in virtual time: whatever happens, every request ends with the right ids.

Users come and leave, are carried and have deadlines, go on with what was said before and ask for
several choices; stages are slow, stuck, killed and short of
memory. Deterministic: a seed that fails once fails each time.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

import pytest

from runner.errors import (
    DeadlineExceeded,
    EngineFull,
    NoMemory,
    NotServing,
    RequestEndsTheGroup,
)
from runner.master.engine import engine, watch
from runner.master.engine.engine import Engine
from runner.master.engine.requests import Carried, GenerationRequest, PromptEvent
from runner.sampling_parameters import SamplingParameters
from runner.transport.control import Served
from tests.runner.master.engine.simulated_group import (
    BEGIN,
    DEADLY,
    SimulatedGroup,
    after,
    logprob,
    sampled,
)
from tests.runner.master.engine.stand_in_group import COMMIT
from tests.runner.master.engine.test_engine import make_spec
from tests.virtual_time import run_in_virtual_time

# Each seed has other ranks, limits and memory.
SEEDS = [
    *(pytest.param(seed, 3_000, id=f"{seed}") for seed in range(8)),
    *(pytest.param(seed, 100_000, id=f"{seed}", marks=pytest.mark.long) for seed in range(8, 28)),
]


@dataclass
class Expected:
    """What the model says of one request, computed in one go."""

    ids: list[int] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)

    @classmethod
    def of(cls, request: GenerationRequest) -> Expected:
        assert request.sampling.seed is not None
        state, found = BEGIN, cls()
        for place, token_id in enumerate(request.prompt_ids):
            found.scores.append(logprob(state, token_id) if place else None)
            state = after(state, token_id)
        while len(found.ids) < request.max_new_tokens:
            found.ids.append(sampled(state, request.sampling.seed, request.choice))
            state = after(state, found.ids[-1])
            if found.ids[-1] in request.sampling.stop_token_ids:
                break
        return found


class Simulation:
    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        ranks = chance.choice((1, 2, 3, 4, 8))
        kv_tokens = chance.choice((1500, 4000, 20_000))
        self.group = SimulatedGroup(
            chance,
            ranks=ranks,
            kv_tokens=kv_tokens,
            room=kv_tokens * chance.choice((0.8, 2.0)) + 200,
            rope_boundary=chance.choice((None, 300)),
        )
        spec = make_spec(
            ranks=ranks,
            prefill_token_budget=chance.choice((16, 64, 512)),
            max_concurrent_requests=chance.choice((4, 32)),
            request_deadline_s=100_000.0,
        )
        self.group.served = Served(spec, COMMIT)
        self.group.listener = self.engine = Engine(self.group)
        self.longest = min(kv_tokens, 1200)
        self.ends: Counter[str] = Counter()
        self.tasks: set[asyncio.Task[None]] = set()
        self.said: list[tuple[int, ...]] = [()]

    async def run(self, steps: int) -> None:
        self.group.form()
        chance, pause_s = self.chance, 0.05
        while self.group.count < steps:
            if len(self.tasks) < 200:
                request = self._request()
                for choice in range(chance.choice((1, 1, 1, 3))):
                    task = asyncio.create_task(self._use(replace(request, choice=choice)))
                    self.tasks.add(task)
                    task.add_done_callback(self._done)
            if chance.random() < 0.02:
                pause_s = chance.choice((0.002, 0.05, 1.0))
            await asyncio.sleep(chance.expovariate(1 / pause_s))
        self.group.calm = True
        while self.tasks:
            await asyncio.wait(self.tasks)
        await asyncio.sleep(60)
        self._check_that_nothing_is_left()

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        task.result()  # what it raised is the test's failure

    def _request(self) -> GenerationRequest:
        chance = self.chance
        said = chance.choice(self.said)
        if chance.random() < 0.2:
            said = said[: chance.randrange(len(said) + 1)]
        length = min(self.longest - 60, int(chance.paretovariate(0.7) * chance.randrange(1, 20)))
        prompt = [*said, *(chance.randrange(1000) for _ in range(max(1, length)))]
        prompt = prompt[: self.longest - 60]
        if chance.random() < 0.0005:
            prompt[chance.randrange(len(prompt))] = DEADLY
        echo = chance.random() < 0.2
        sampling = SamplingParameters(
            seed=chance.randrange(2**63),
            logprobs=chance.choice((-1, 0)),
            stop_token_ids=(chance.randrange(1000), chance.randrange(1000)),
        )
        return GenerationRequest(
            tuple(prompt),
            chance.randrange(0 if echo else 1, 50),
            sampling,
            deadline_s=chance.choice((None, None, None, 0.5, 20.0)),
            echo=echo,
            domain=chance.choice(("", "", "another")),
        )

    async def _use(self, request: GenerationRequest) -> None:
        """One user, who may leave, and may come back with the ids that were delivered."""
        expected, ids, told = Expected.of(request), list[int](), False
        while True:
            patience = self.chance.choice((None, None, None, self.chance.randrange(50)))
            try:
                with closing(self.engine.generate(request)) as tokens:
                    async for event in tokens:
                        if isinstance(event, PromptEvent):
                            assert not told
                            assert not ids
                            told = True
                            self._check_prompt(request, event, expected)
                        else:
                            assert told == request.echo
                            ids.append(event.token_id)
                            assert event.token_id == expected.ids[len(ids) - 1]
                            assert (event.logprob is None) == (request.sampling.logprobs < 0)
                        if event.finish_reason is not None:
                            assert ids == expected.ids
                            self.ends[event.finish_reason] += 1
                            self._remember((*request.prompt_ids, *ids))
                            return
                        if patience is not None and len(ids) > patience:
                            break
            except Exception as error:
                self._check_error(request, error)
                return
            self.ends["left"] += 1
            if self.chance.random() < 0.5:
                return
            self.ends["carried"] += 1
            request = replace(request, carried=Carried(tuple(ids), self.chance.random() < 0.02))

    def _remember(self, said: tuple[int, ...]) -> None:
        if len(said) < self.longest - 100 and DEADLY not in said:
            self.said.append(said)
            if len(self.said) > 20:
                del self.said[self.chance.randrange(len(self.said))]

    def _check_prompt(
        self, request: GenerationRequest, event: PromptEvent, expected: Expected
    ) -> None:
        if request.sampling.logprobs < 0:
            assert not event.ids
            return
        assert tuple(item.token_id for item in event.ids) == request.prompt_ids
        assert [item.logprob for item in event.ids] == expected.scores

    def _check_error(self, request: GenerationRequest, error: Exception) -> None:
        self.ends[type(error).__name__] += 1
        if isinstance(error, DeadlineExceeded):
            assert request.deadline_s is not None
        elif isinstance(error, RequestEndsTheGroup):
            assert DEADLY in request.prompt_ids
        elif isinstance(error, NoMemory):
            self._check_too_large(request)
        else:
            assert isinstance(error, EngineFull | NotServing), error

    def _check_too_large(self, request: GenerationRequest) -> None:
        """With the memory that was there it was: a step of 32 tokens at most did not fit."""
        capacity = len(request.prompt_ids) + request.max_new_tokens
        room = self.group._room * min(1.0, self.group.squeeze)
        assert capacity + 2 * 32 > room

    def _check_that_nothing_is_left(self) -> None:
        scheduler = self.engine._scheduler
        assert scheduler is not None
        assert not self.engine._ledger.open
        assert not scheduler.waiting
        assert not scheduler.running
        assert not scheduler._ready
        assert not scheduler._releases
        assert not [item for item in scheduler.in_flight.values() if item.step.segments]
        assert scheduler.kv_reserved == 0
        donors = scheduler.donors
        assert not donors._taken
        assert self.group._admissions.keys() == donors._kept.keys()
        for stage in self.group._stages:
            assert stage.held.keys() == donors._kept.keys()
            assert sum(slot.capacity for slot in stage.held.values()) == donors.places


@pytest.fixture
def quiet() -> Iterator[None]:
    """Thousands of warnings, each of which pytest would keep."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("seed", "steps"), SEEDS)
def test_every_request_ends_with_the_right_ids(seed: int, steps: int) -> None:
    async def body() -> None:
        simulation = Simulation(seed)
        await simulation.run(steps)
        assert simulation.ends["stop"] + simulation.ends["length"] > steps / 100
        assert simulation.ends["carried"] > steps / 2000
        assert simulation.engine.statistics().reused_tokens > steps / 10
        if steps >= 10_000:  # a short one may have none of a kind
            assert 0 < simulation.group.aborted < steps / 5
            assert simulation.group.kills + simulation.group.stuck_steps > steps / 10_000

    run_in_virtual_time(body, engine, watch)
