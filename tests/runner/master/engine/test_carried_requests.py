"""Requests that another process had admitted: they go on, find a place, and may be tried alone."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, closing
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.errors import EngineFull, NotServing, RequestEndsTheGroup
from runner.master.engine.requests import Carried, GenerationRequest
from tests.lanes import examples
from tests.runner.master.engine.stand_in_group import COMMIT, VOCABULARY
from tests.runner.master.engine.test_engine import (
    collect,
    make_engine,
    make_request,
    make_spec,
    run,
    wanted,
)


def carried(request: GenerationRequest, count: int, *, alone: bool = False) -> GenerationRequest:
    """After the first `count` ids that it is to have."""
    return replace(request, carried=Carried(tuple(wanted(request)[:count]), alone))


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.integers(2, 20), st.integers(0, 30), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 30),
)
def test_they_go_on_as_if_nothing_had_happened(
    sizes: list[tuple[int, int, int, bool]], lost_after: int
) -> None:
    """Also where the group is lost once more."""

    async def body() -> None:
        engine, group = make_engine(make_spec(prefill_token_budget=16))
        group.form()
        requests = [
            carried(make_request(length, new, number), kept % new, alone=alone)
            for number, (length, new, kept, alone) in enumerate(sizes)
        ]
        tasks = [asyncio.create_task(collect(engine, request)) for request in requests]
        for _ in range(lost_after):
            await asyncio.sleep(0)
        # A loss that is announced is nobody's doing.
        group.lose(announced=True)
        group.form()
        for request, rest in zip(requests, await asyncio.gather(*tasks), strict=True):
            assert request.carried is not None
            assert [*request.carried.ids, *rest] == wanted(request)
        await asyncio.sleep(0.01)
        assert group.holds_only_kept

    run(body)


def test_who_was_admitted_before_finds_a_place_beyond_those_of_new_ones() -> None:
    async def body() -> None:
        engine, group = make_engine(make_spec(max_concurrent_requests=2))
        group.form()
        group.frozen = True
        request = make_request(3, 3)
        with ExitStack() as entered:
            for _ in range(10):
                entered.enter_context(closing(engine.generate(request)))
            with pytest.raises(EngineFull):
                engine.generate(request)
            for _ in range(10):
                entered.enter_context(closing(engine.generate(carried(request, 1))))
            with pytest.raises(EngineFull):
                engine.generate(carried(request, 1))

    run(body)


def test_one_in_doubt_has_no_company_until_its_ids_are_computed() -> None:
    async def body() -> None:
        engine, group = make_engine(make_spec(prefill_token_budget=16), delay_s=0.001)
        group.form()
        others = [make_request(40, 30, number) for number in range(3)]
        tasks = [asyncio.create_task(collect(engine, other)) for other in others]
        await asyncio.sleep(0.02)
        doubtful = carried(make_request(50, 12, 9), 5, alone=True)
        rest = await collect(engine, doubtful)
        assert rest == wanted(doubtful)[5:]
        assert await asyncio.gather(*tasks) == [wanted(other) for other in others]
        [number] = {
            admission.request
            for step in group.steps
            for admission in step.admissions
            if admission.prompt_length == 50
        }
        companies = [
            {segment.request for segment in step.segments}
            for step in group.steps
            if any(item.request == number and item.start < 55 - 1 for item in step.segments)
        ]
        assert companies == [{number}] * len(companies)

    run(body)


def test_one_in_doubt_that_ends_the_group_is_not_tried_again() -> None:
    async def body() -> None:
        engine, group = make_engine(delay_s=0.001)
        group.form()
        doubtful = carried(make_request(10, 12, 9), 5, alone=True)
        other = make_request(30, 8, 3)
        group.deadly = {*wanted(doubtful)[:5]} - {*other.prompt_ids, *wanted(other)}
        tasks = [asyncio.create_task(collect(engine, item)) for item in (other, doubtful)]
        with pytest.raises(RequestEndsTheGroup):
            await tasks[1]
        assert await tasks[0] == wanted(other)
        assert engine.statistics().losses == 1

    run(body)


def test_the_model_is_known_with_the_first_group() -> None:
    async def body() -> None:
        engine, group = make_engine()
        for ask in (lambda: engine.model_commit, lambda: engine.vocabulary_size):
            with pytest.raises(NotServing, match="not formed yet"):
                ask()
        group.form()
        assert (engine.model_commit, engine.vocabulary_size) == (COMMIT, VOCABULARY)

    run(body)
