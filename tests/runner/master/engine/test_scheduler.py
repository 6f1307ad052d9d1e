"""What goes into a step, and in which order requests come to their turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.errors import InvalidField, PromptTooLong
from runner.grammar import Grammar, GrammarFault
from runner.master.engine.micro_batches import MicroBatches
from runner.master.engine.requests import GenerationRequest, OpenRequest, RequestLedger
from runner.master.engine.scheduler import UNKNOWN_STEP_LIMIT_S, Scheduler
from runner.master.engine.step_cost import MIN_CHUNK, StepCost
from runner.sampling_parameters import SamplingParameters
from runner.steps import Refusal, SampledToken, Segment, StageTime, Step, StepResult
from tests.runner.master.engine.unruly_pipeline import UnrulyPipeline


class Bench:
    """A scheduler, and stages that answer when they are told to."""

    def __init__(self, ranks: int = 2, *, kv_tokens: int = 10_000, running: int = 8) -> None:
        cost = StepCost(ranks)
        self.ranks, self.submitted = ranks, 0
        self.ledger = RequestLedger()
        self.micro_batches = MicroBatches(cost)
        self.scheduler = Scheduler(
            ranks=ranks,
            prefill_token_budget=64,
            max_concurrent_requests=running,
            kv_tokens=kv_tokens,
            fillable=kv_tokens,
            rope_boundary=None,
            cost=cost,
            micro_batches=self.micro_batches,
        )

    def submit(self, prompt_tokens: int, new_tokens: int = 100) -> OpenRequest:
        """No other prompt begins like this one."""
        self.submitted += 1
        first = 10_000 * self.submitted
        return self.ask(tuple(range(first, first + prompt_tokens)), new_tokens)

    def ask(self, prompt: tuple[int, ...], new_tokens: int = 100, **changes: Any) -> OpenRequest:
        sampling = changes.pop("sampling", SamplingParameters(seed=1))
        request = GenerationRequest(prompt, new_tokens, sampling, **changes)
        entry = self.ledger.add(request, lambda _event: None)
        self.scheduler.submit(entry)
        return entry

    def next_step(self) -> Step | None:
        return self.scheduler.next_step(0.0)

    def answer(self, step: Step, compute_ns: int = 1_000_000) -> list[int]:
        """The step comes back after 0.1 s; the requests that got a token."""
        tokens = tuple(
            SampledToken(segment.request, segment.start + segment.length, 7)
            for segment in step.segments
            if segment.sample
        )
        times = tuple(StageTime(rank, compute_ns, 0) for rank in range(self.ranks))
        events = self.scheduler.returned(StepResult(step.number, tokens, times), 0.1)
        return [request.number for request, _ in events]


def test_prompts_fill_the_budget_in_order() -> None:
    bench = Bench()
    first, second = bench.submit(40), bench.submit(40)
    step = bench.next_step()
    assert step is not None
    assert [(item.request, item.start, item.length) for item in step.segments] == [
        (first.number, 0, 40),
        (second.number, 0, 24),
    ]
    assert [item.sample for item in step.segments] == [True, False]
    assert [item.request for item in step.admissions] == [first.number, second.number]
    assert list(step.token_ids) == [*range(10_000, 10_040), *range(20_000, 20_024)]


def test_chunks_follow_without_waiting_but_not_without_end() -> None:
    bench = Bench(ranks=2)
    bench.submit(1000)
    steps = []
    while (step := bench.next_step()) is not None:
        steps.append(step)
    assert [step.segments[0].start for step in steps] == [0, 64, 128]
    assert all(step.segments[0].total == 1000 for step in steps)
    assert not any(step.segments[0].sample for step in steps)
    assert bench.answer(steps[0]) == []
    following = bench.next_step()
    assert following is not None
    assert following.segments[0].start == 192
    assert not following.admissions


def test_decodes_come_first_and_wait_for_their_token() -> None:
    bench = Bench(ranks=1)
    bench.micro_batches.count = 1
    running = bench.submit(4)
    step = bench.next_step()
    assert step is not None
    assert bench.next_step() is None
    assert bench.answer(step) == [running.number]
    late = bench.submit(500)
    step = bench.next_step()
    assert step is not None
    assert [(item.request, item.length) for item in step.segments] == [
        (running.number, 1),
        (late.number, 63),
    ]
    assert step.segments[0].start == 4


def test_prompts_come_on_however_many_decode() -> None:
    bench = Bench(ranks=1, running=100)
    bench.micro_batches.count = 1
    for _ in range(70):
        bench.submit(1)
    for _ in range(2):
        step = bench.next_step()
        assert step is not None
        bench.answer(step)
    late = bench.submit(500)
    step = bench.next_step()
    assert step is not None
    assert len(step.segments) == 71
    assert (step.segments[-1].request, step.segments[-1].length) == (late.number, MIN_CHUNK)


@pytest.mark.parametrize(("count", "sizes"), [(1, [6]), (2, [3, 3]), (3, [2, 2, 2])])
def test_micro_batches_share_the_requests(count: int, sizes: list[int]) -> None:
    bench = Bench(ranks=3)
    for _ in range(6):
        bench.submit(4)
    step = bench.next_step()
    assert step is not None
    assert len(bench.answer(step)) == 6
    bench.micro_batches.count = count
    steps = []
    while (step := bench.next_step()) is not None:
        steps.append(step)
    assert [len(step.segments) for step in steps] == sizes


def test_admission_is_in_order_of_arrival_and_within_the_cache() -> None:
    bench = Bench(kv_tokens=100)
    large, larger, small = bench.submit(10, 50), bench.submit(10, 60), bench.submit(5, 5)
    step = bench.next_step()
    assert step is not None
    assert [item.request for item in step.segments] == [large.number]
    assert list(bench.scheduler.waiting) == [larger, small]
    bench.scheduler.remove(large)
    step = bench.next_step()
    assert step is not None
    assert step.releases == (large.number,)
    assert [item.request for item in step.admissions] == [larger.number, small.number]
    assert bench.scheduler.kv_reserved == 80


def test_running_requests_are_bounded() -> None:
    bench = Bench(running=2)
    for _ in range(3):
        bench.submit(4)
    step = bench.next_step()
    assert step is not None
    assert len(step.segments) == 2
    assert len(bench.scheduler.waiting) == 1


def test_a_request_that_can_never_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(PromptTooLong, match=r"60.*110.*100"):
        Bench(kv_tokens=100).scheduler.check(60, 50)


def test_a_place_is_released_in_a_step_of_its_own_when_nothing_runs() -> None:
    bench = Bench()
    request = bench.submit(4)
    step = bench.next_step()
    assert step is not None
    bench.scheduler.remove(request)
    release = bench.next_step()
    assert release is not None
    assert (release.releases, release.segments) == ((request.number,), ())
    assert bench.answer(step) == []  # its token comes too late
    assert bench.next_step() is None


def test_overdue() -> None:
    bench = Bench()
    bench.submit(4)
    step = bench.next_step()
    assert step is not None
    assert bench.scheduler.overdue(UNKNOWN_STEP_LIMIT_S - 1) is None
    assert f"step {step.number}" in str(bench.scheduler.overdue(UNKNOWN_STEP_LIMIT_S + 1))
    bench.answer(step)
    following = bench.next_step()
    assert following is not None
    assert bench.scheduler.overdue(4.9) is None
    assert "6.0 s" in str(bench.scheduler.overdue(6.0))


def test_a_wrong_time_does_not_hide_a_lost_step() -> None:
    bench = Bench()
    bench.submit(4)
    step = bench.next_step()
    assert step is not None
    bench.answer(step, compute_ns=2**64 - 1)
    assert bench.next_step() is not None
    assert "10.0 s" in str(bench.scheduler.overdue(10.0))


FACTORS = st.sampled_from((0.0, 1e-9, 1.0, 1e6)) | st.floats(0.3, 3)
TOLD = st.none() | st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
PIPELINES = st.builds(
    UnrulyPipeline,
    ranks=st.integers(1, 16),
    fixed_s=st.sampled_from((0.0, 0.0, 1e-9, 0.02)),
    per_token_s=st.sampled_from((0.0, 0.001, 0.001)),
    cores=st.sampled_from((1, 16)),
    budget=st.sampled_from((1, 31, 64)) | st.integers(1, 600),
    only=st.none(),
    kv_tokens=st.integers(1000, 5000),
    max_running=st.integers(1, 40),
    rope_boundary=st.none() | st.integers(1, 800),
    return_s=FACTORS,
    alike=st.booleans(),
    factors=st.lists(FACTORS, min_size=1, max_size=20),
    lies=st.just([None]) | st.lists(TOLD, min_size=1, max_size=20),
)
# A prompt and its new tokens, a client that leaves, a loss of the group; and how many turns then.
EVENTS = st.tuples(
    st.tuples(st.integers(1, 900), st.integers(1, 40)) | st.integers(0, 50) | st.none(),
    st.integers(0, 40),
)


@settings(max_examples=150, deadline=None)
@given(PIPELINES, st.lists(EVENTS, max_size=20))
def test_every_request_ends(
    pipeline: UnrulyPipeline,
    events: Sequence[tuple[tuple[int, int] | int | None, int]],
) -> None:
    for event, turns in events:
        if event is None:
            pipeline.form()
        elif isinstance(event, int):
            pipeline.leave(event)
        else:
            pipeline.submit(*event)
        for _ in range(turns):
            pipeline.turn()
    for _ in range(1_000_000):
        if not pipeline.turn():
            break
    scheduler = pipeline.scheduler
    assert not pipeline.ledger.open
    assert not scheduler.waiting
    assert not scheduler.running
    assert not scheduler.in_flight
    assert not scheduler._ready
    assert scheduler.kv_reserved == 0


GRAMMAR = Grammar('{"grammars": [{"lark_grammar": "start: /a+/"}]}', "structured_outputs.regex")


def test_a_token_that_was_not_to_be_had_yet_is_asked_for_again() -> None:
    bench = Bench()
    held = bench.ask((1, 2, 3), grammar=GRAMMAR)
    other = bench.ask((4, 5))
    step = bench.next_step()
    assert step is not None
    assert [admission.grammar for admission in step.admissions] == [GRAMMAR.text, ""]
    only = (SampledToken(other.number, 2, 7),)
    assert len(bench.scheduler.returned(StepResult(step.number, only, ()), 0.1)) == 1
    for _ in range(2):
        segments = {}
        while (again := bench.next_step()) is not None:
            segments |= {item.request: (item.start, item.length) for item in again.segments}
            assert not again.admissions
            tokens = [SampledToken(*_next(item)) for item in again.segments]
            others = tuple(token for token in tokens if token.request == other.number)
            bench.scheduler.returned(StepResult(again.number, others, ()), 0.1)
            if held.number in segments:
                break
        assert segments[held.number] == (2, 1)
        assert list(held.emitted) == []
    while not held.emitted:
        step = bench.next_step()
        assert step is not None
        bench.answer(step)
    assert held.emitted == [7]
    assert other.emitted[:3] == [7, 7, 7]


def _next(segment: Segment) -> tuple[int, int, int]:
    return segment.request, segment.start + segment.length, 7


def test_a_request_that_cannot_be_held_to_its_grammar_ends() -> None:
    bench = Bench()
    held, other = bench.ask((1, 2, 3), grammar=GRAMMAR), bench.ask((4, 5))
    step = bench.next_step()
    assert step is not None
    tokens = (SampledToken(other.number, 2, 7),)
    refused = (Refusal(held.number, GrammarFault.DEAD_END),)
    result = StepResult(step.number, tokens, (), refused=refused)
    events = dict(bench.scheduler.returned(result, 0.1))
    assert isinstance(events[held], InvalidField)
    assert str(events[held]).startswith("structured_outputs.regex: cannot be written on")
    bench.scheduler.remove(held)
    following = bench.next_step()
    assert following is not None
    assert [segment.request for segment in following.segments] == [other.number]
