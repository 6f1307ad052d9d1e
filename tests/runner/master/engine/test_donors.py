"""Whose keys and values a request begins with, and who gives way."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.master.engine.donors import LEAST_REUSED, common
from runner.master.engine.requests import OpenRequest, packed
from runner.sampling_parameters import SamplingParameters
from runner.steps import Step, StepResult
from tests.runner.master.engine.test_scheduler import Bench

PROMPT = tuple(range(100, 150))


def step_of(bench: Bench) -> Step:
    step = bench.next_step()
    assert step is not None
    return step


def end(bench: Bench, request: OpenRequest) -> None:
    """Its client leaves once what is on its way has come back."""
    while bench.scheduler.in_flight:
        bench.answer(next(iter(bench.scheduler.in_flight.values())).step)
    bench.ledger.remove(request.number)
    bench.scheduler.remove(request)


def serve(bench: Bench, prompt: tuple[int, ...], new_tokens: int = 10) -> OpenRequest:
    """A request that has had one token, and is kept: 7, whatever its prompt."""
    request = bench.ask(prompt, new_tokens)
    bench.answer(step_of(bench))
    end(bench, request)
    return request


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)), st.lists(st.integers(0, 2**31)))
def test_common_beginnings(first: list[int], second: list[int], both: list[int]) -> None:
    expected = len(both)
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        expected += 1
    assert common(packed([*both, *first]), packed([*both, *second])) == expected


def test_a_session_goes_on_in_the_slot_of_its_last_turn() -> None:
    bench = Bench()
    first = serve(bench, PROMPT)
    assert bench.scheduler.kv_reserved == 0
    assert bench.scheduler.donors.places == 60
    second = bench.ask((*PROMPT, 7, 8, 9), 20)
    step = step_of(bench)
    [admission] = step.admissions
    assert (admission.donor, admission.reused) == (first.number, 50)
    assert step.releases == (first.number,)
    assert [(item.start, item.length) for item in step.segments] == [(50, 3)]
    assert list(step.token_ids) == [7, 8, 9]
    assert (second.reused, bench.scheduler.kv_reserved) == (50, 73)
    assert bench.scheduler.donors.places == 0


def test_another_end_gets_a_copy_and_the_last_id_is_always_computed() -> None:
    bench = Bench()
    first = serve(bench, PROMPT)
    for prompt, reused in (((*PROMPT[:30], 1), 30), (PROMPT[:30], 29), (PROMPT, 49)):
        assert bench.scheduler.donors.places == 60
        bench.ask(prompt)
        step = step_of(bench)
        assert (step.admissions[0].donor, step.admissions[0].reused) == (first.number, reused)
        # Only of the whole of it nothing is left to be kept.
        assert step.releases == ((first.number,) if reused == 49 else ())
        bench.answer(step)


def test_too_little_in_common_is_computed() -> None:
    bench = Bench()
    serve(bench, PROMPT)
    serve(bench, PROMPT[: LEAST_REUSED - 1])
    bench.ask((*PROMPT[: LEAST_REUSED - 1], 1, 2))
    [admission] = step_of(bench).admissions
    assert (admission.donor, admission.reused) == (0, 0)


def test_domains_share_nothing() -> None:
    bench = Bench()
    bench.scheduler.remove(other := bench.ask(PROMPT, domain="one"))
    assert not other.held
    one = bench.ask(PROMPT, domain="one")
    bench.answer(step_of(bench))
    running = bench.ask((*PROMPT, 1), domain="another")
    step = step_of(bench)
    assert [item.reused for item in step.admissions] == [0]
    bench.answer(step)
    end(bench, one)
    end(bench, running)
    again = bench.ask((*PROMPT, 7, 1), domain="one")
    [admission] = step_of(bench).admissions
    assert admission.donor == one.number
    assert again.reused == 51  # its first new id was sent, and computed meanwhile


def test_scores_of_a_prompt_are_computed_with_it() -> None:
    for logprobs, reused in ((0, 0), (-1, 50)):
        bench = Bench()
        serve(bench, PROMPT)
        sampling = SamplingParameters(seed=1, logprobs=logprobs)
        bench.ask((*PROMPT, 1), sampling=sampling, echo=True)
        assert [item.reused for item in step_of(bench).admissions] == [reused]


def test_choices_wait_for_the_one_that_computes_their_prompt() -> None:
    bench = Bench(ranks=2)
    prompt = tuple(range(100))
    choices = [bench.ask(prompt, choice=choice) for choice in range(3)]
    first, second = step_of(bench), step_of(bench)
    assert [item.request for item in first.segments] == [choices[0].number]
    assert [item.length for item in second.segments] == [36]
    third = step_of(bench)
    assert [(item.request, item.start, item.length) for item in third.segments] == [
        (choices[1].number, 99, 1),
        (choices[2].number, 99, 1),
    ]
    assert {(item.donor, item.reused) for item in third.admissions} == {(choices[0].number, 99)}


def test_the_least_recently_used_give_way_and_never_the_request() -> None:
    bench = Bench(kv_tokens=200)
    kept = [serve(bench, (number, *PROMPT), 9) for number in range(3)]
    assert bench.scheduler.donors.places == 180
    bench.ask((*(0, *PROMPT)[:40], 1), 9)  # the first one is used once more
    step = step_of(bench)
    assert step.admissions[0].donor == kept[0].number
    assert step.releases == (kept[1].number,)
    bench.answer(step)
    bench.submit(100, 40)
    step = step_of(bench)
    assert set(step.releases) == {kept[0].number, kept[2].number}
    assert bench.scheduler.donors.places == 0
    assert bench.scheduler.kv_reserved == 190


def test_without_room_beside_it_the_donors_slot_is_taken() -> None:
    bench = Bench(kv_tokens=100)
    first = serve(bench, PROMPT)
    bench.ask((*PROMPT[:20], 1), 60)
    step = step_of(bench)
    assert (step.admissions[0].donor, step.admissions[0].reused) == (first.number, 20)
    assert step.releases == (first.number,)
    assert bench.scheduler.kv_reserved == 81


def test_who_leaves_before_its_turn_gives_back_what_it_would_have_taken() -> None:
    bench = Bench(kv_tokens=500, running=2)
    first = serve(bench, PROMPT, 50)
    bench.submit(100)
    waiting = bench.ask((*PROMPT, 7, 8), 10)
    step_of(bench)  # of the other's prompt, which fills it
    assert bench.scheduler.kv_reserved == 200 + 100
    assert bench.scheduler.donors.places == 0
    bench.scheduler.remove(waiting)
    assert bench.scheduler.kv_reserved == 200
    assert bench.scheduler.donors.places == 100
    step_of(bench)
    bench.ask((*PROMPT, 7, 9), 10)
    assert step_of(bench).admissions[0].donor == first.number


def test_memory_that_is_short_takes_what_is_kept_first() -> None:
    bench = Bench()
    kept = serve(bench, PROMPT)
    request = bench.submit(60)
    step = step_of(bench)
    assert bench.scheduler.returned(StepResult(step.number, (), (), aborted=True), 0.1) == []
    again = step_of(bench)
    assert again.releases == (kept.number,)
    assert [item.request for item in again.admissions] == [request.number]
    bench.answer(again)
    end(bench, request)
    release = step_of(bench)
    assert (release.releases, release.segments) == ((request.number,), ())
    assert not bench.scheduler.donors.places


def test_a_request_that_may_end_the_group_reuses_nothing_and_is_not_kept() -> None:
    bench = Bench()
    serve(bench, PROMPT)
    request = bench.ask((*PROMPT, 1))
    request.lost_at(50)
    step = step_of(bench)
    assert [item.reused for item in step.admissions] == [0]
    bench.answer(step)
    assert not request.losses
    request.lost_at(60)
    bench.scheduler.remove(request)
    assert bench.scheduler.donors.places == 60


@pytest.mark.parametrize("seed", range(5))
def test_fewer_requests_leave_room_for_less_to_be_kept(seed: int) -> None:
    chance, bench = random.Random(seed), Bench()
    for number in range(10):
        serve(bench, (number, *PROMPT), chance.randrange(1, 50))
    room = chance.randrange(bench.scheduler.donors.places)
    bench.scheduler.take(prefill_token_budget=64, max_concurrent_requests=1, fillable=room)
    assert room - 101 < bench.scheduler.donors.places <= room
    assert replace(step_of(bench), releases=()).segments == ()
