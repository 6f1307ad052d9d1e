"""Who is computed when epochs are lost: tried alone, ended when that is lost too, others go on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.errors import RequestEndsTheGroup
from runner.master.engine.requests import OpenRequest
from runner.steps import Step
from tests.lanes import examples
from tests.runner.master.engine.test_engine import (
    collect,
    ids_of,
    make_engine,
    make_request,
    make_spec,
    next_id,
    run,
    wanted,
)
from tests.runner.master.engine.test_scheduler import Bench
from tests.runner.master.engine.unruly_pipeline import UnrulyPipeline


@pytest.mark.parametrize("where", ["the prompt", "the answer"])
def test_it_is_ended_and_the_others_go_on(where: str) -> None:
    async def body() -> None:
        engine, group = make_engine(make_spec(prefill_token_budget=32), delay_s=0.001)
        group.form()
        innocent = [make_request(20 + 9 * number, 12, number) for number in range(5)]
        culprit = make_request(50, 12, 99)
        ids = {*wanted(culprit)[:-1]} if where == "the answer" else {*culprit.prompt_ids[40:]}
        for request in innocent:
            ids -= {*request.prompt_ids, *wanted(request)}
        group.deadly = {min(ids)}
        tasks = [asyncio.create_task(collect(engine, item)) for item in (*innocent, culprit)]
        with pytest.raises(RequestEndsTheGroup, match="3 times in a row"):
            await tasks[-1]
        assert await asyncio.gather(*tasks[:-1]) == [wanted(request) for request in innocent]
        assert engine.statistics().losses == 3
        await asyncio.sleep(0.01)
        assert group.holds_only_kept

    run(body)


def test_two_of_them_are_found_one_after_the_other() -> None:
    async def body() -> None:
        engine, group = make_engine(delay_s=0.001)
        group.form()
        culprits = [make_request(10, 5, number) for number in (1, 2)]
        innocent = make_request(30, 8, 3)
        ids = [{*item.prompt_ids} - {*innocent.prompt_ids, *wanted(innocent)} for item in culprits]
        group.deadly = {min(found) for found in ids}
        tasks = [asyncio.create_task(collect(engine, item)) for item in (*culprits, innocent)]
        for task in tasks[:2]:
            with pytest.raises(RequestEndsTheGroup):
                await task
        assert await tasks[2] == wanted(innocent)
        assert engine.statistics().losses == 4

    run(body)


def test_who_advances_between_two_losses_is_in_no_doubt() -> None:
    async def body() -> None:
        engine, group = make_engine(delay_s=0.001)
        group.form()
        request = make_request(5, 60)
        events = engine.generate(request)
        got = []
        for _ in range(6):
            got += [await next_id(events) for _ in range(3)]
            group.lose()
            group.form()
        got += await ids_of(events)
        assert got == wanted(request)

    run(body)


def test_a_stage_that_announced_its_leaving_counts_against_nobody() -> None:
    async def body() -> None:
        engine, group = make_engine(delay_s=0.001)
        group.form()
        request = make_request(5, 10)
        task = asyncio.create_task(collect(engine, request))
        for _ in range(5):
            while not group.steps[-1].segments:  # noqa: ASYNC110
                await asyncio.sleep(0)
            group.lose("rank 1 is ending", announced=True)
            group.form()
        assert await task == wanted(request)

    run(body)


def doubtful(bench: Bench, prompt_tokens: int, new_tokens: int = 100) -> OpenRequest:
    """As `submit`, of a request that was computed in two lost epochs."""
    request = bench.submit(prompt_tokens, new_tokens)
    request.lost_at(prompt_tokens)
    request.lost_at(prompt_tokens)
    return request


def requests_of(step: Step | None) -> list[int]:
    assert step is not None
    return [segment.request for segment in step.segments]


def test_nothing_is_computed_beside_one_in_doubt() -> None:
    bench = Bench(ranks=3)
    first, second = doubtful(bench, 100), doubtful(bench, 20)
    third = bench.submit(20)
    chunks = [bench.next_step(), bench.next_step()]
    assert [requests_of(step) for step in chunks] == [[first.number]] * 2
    assert bench.next_step() is None
    for step in chunks:
        assert step is not None
        bench.answer(step)
    assert not first.tried_alone
    # The first one is held, and waits: the second's turn.
    step = bench.next_step()
    assert requests_of(step) == [second.number]
    assert bench.next_step() is None
    assert step is not None
    bench.answer(step)
    together = [first.number, second.number, third.number]
    assert requests_of(bench.next_step()) == together


def test_one_that_finds_no_room_waits_until_others_have_ended() -> None:
    bench = Bench(kv_tokens=100)
    first, second = doubtful(bench, 50, 2), doubtful(bench, 60, 10)
    for _ in range(2):
        step = bench.next_step()
        assert requests_of(step) == [first.number]
        assert step is not None
        bench.answer(step)
    bench.ledger.remove(first.number)
    bench.scheduler.remove(first)
    assert requests_of(bench.next_step()) == [second.number]


def test_one_whose_client_leaves_makes_way() -> None:
    bench = Bench()
    first = doubtful(bench, 20)
    second = bench.submit(20)
    step = bench.next_step()
    assert step is not None
    bench.scheduler.remove(first)
    following = bench.next_step()
    assert requests_of(following) == [second.number]


@dataclass
class DeadlyPipeline(UnrulyPipeline):
    """The group is lost when a position of `deadly` (by request) has been computed, and after the
    steps whose numbers, counted over all epochs, are in `kills`."""

    deadly: dict[int, int] = field(default_factory=dict)
    kills: frozenset[int] = frozenset()
    ended: list[int] = field(default_factory=list)
    steps: int = 0

    def sent(self, step: Step) -> None:
        super().sent(step)
        moving = self.scheduler.being_computed()
        alone = [number for number in moving if self._in_doubt(number)]
        assert not alone or len(moving) == 1

    def _in_doubt(self, number: int) -> bool:
        request = self.ledger.open.get(number)
        return request is not None and request.tried_alone

    def _return(self, step: Step, times: list[float]) -> None:
        self.steps += 1
        kills = any(
            segment.start <= self.deadly.get(segment.request, -1) < segment.start + segment.length
            for segment in step.segments
        )
        if not kills and self.steps not in self.kills:
            super()._return(step, times)
            return
        self.ended += [entry.number for entry in self.ledger.blame(self.scheduler.being_computed())]
        self.form()


@settings(deadline=None, max_examples=examples(60))
@given(
    prompts=st.lists(st.integers(1, 300), min_size=1, max_size=12),
    deadly=st.dictionaries(st.integers(1, 12), st.integers(0, 310), max_size=3),
    ranks=st.integers(1, 4),
    kv_tokens=st.sampled_from([320, 700, 10_000]),
    kills=st.frozensets(st.integers(1, 400), max_size=4),
)
def test_every_request_ends_whoever_ends_the_group(
    prompts: list[int],
    deadly: dict[int, int],
    ranks: int,
    kv_tokens: int,
    kills: frozenset[int],
) -> None:
    pipeline = DeadlyPipeline(
        ranks, 0.01, 0.0001, ranks, budget=64, kv_tokens=kv_tokens, deadly=deadly, kills=kills
    )
    for length in prompts:
        pipeline.submit(length, 12)
    pipeline.run(3600)
    assert not pipeline.ledger.open
    assert not pipeline.scheduler.running
    assert not pipeline.scheduler.waiting
    assert pipeline.scheduler.kv_reserved == 0
    lengths = dict(enumerate(prompts, 1))
    culprits = {number for number, at in deadly.items() if at < lengths.get(number, -99) + 11}
    assert culprits <= {*pipeline.ended}
    # What else a kill in the middle of a trial takes for one.
    assert len({*pipeline.ended} - culprits) <= len(kills)
