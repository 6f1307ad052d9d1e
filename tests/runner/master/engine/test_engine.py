"""The engine over the stand-in group: every token once, in order, whatever is lost."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from contract.specs import GroupSpec, RankPart
from runner.errors import (
    DeadlineExceeded,
    EngineFull,
    InvalidField,
    NotServing,
    PromptTooLong,
)
from runner.master.engine import engine as engine_module
from runner.master.engine import watch
from runner.master.engine.engine import Engine
from runner.master.engine.requests import GenerationRequest, TokenEvent
from runner.master.engine.scheduler import Scheduler
from runner.master.engine.tokens import Tokens
from runner.sampling_parameters import SamplingParameters
from tests.runner.master.engine.stand_in_group import VOCABULARY, StandInGroup, expected_tokens
from tests.virtual_time import run_in_virtual_time


def make_spec(ranks: int = 2, **settings: object) -> GroupSpec:
    return GroupSpec(
        deployment_name="test",
        model_name="model",
        ranks=tuple(RankPart((rank, rank + 1)) for rank in range(ranks)),
        **settings,  # type: ignore[arg-type]
    )


def make_engine(spec: GroupSpec | None = None, **group: object) -> tuple[Engine, StandInGroup]:
    stand_in = StandInGroup(spec=spec, **group)  # type: ignore[arg-type]
    stand_in.listener = engine = Engine(stand_in)
    return engine, stand_in


def make_request(length: int, new_tokens: int, seed: int = 7, **sampling: object):
    prompt = tuple(random.Random(length * 1000 + seed).randrange(1000) for _ in range(length))
    parameters = SamplingParameters(seed=seed, **sampling)  # type: ignore[arg-type]
    return GenerationRequest(prompt, new_tokens, parameters)


async def next_id(tokens: Tokens) -> int:
    event = await anext(tokens)
    assert isinstance(event, TokenEvent)
    return event.token_id


async def ids_of(tokens: Tokens) -> list[int]:
    """The rest of them."""
    return [event.token_id async for event in tokens if isinstance(event, TokenEvent)]


async def collect(engine: Engine, request: GenerationRequest) -> list[int]:
    with closing(engine.generate(request)) as tokens:
        return await ids_of(tokens)


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """For half a minute of the engine's time at most."""

    async def limited() -> None:
        await asyncio.wait_for(body(), 30)

    run_in_virtual_time(limited, engine_module, watch)


def wanted(request: GenerationRequest) -> list[int]:
    assert request.sampling.seed is not None
    return expected_tokens(request.prompt_ids, request.max_new_tokens, request.sampling.seed)


def test_many_requests_at_once() -> None:
    async def body() -> None:
        engine, group = make_engine(make_spec(prefill_token_budget=64))
        group.form()
        requests = [make_request(1 + 17 * number, 3 + number, number) for number in range(20)]
        results = await asyncio.gather(*(collect(engine, request) for request in requests))
        assert results == [wanted(request) for request in requests]
        await asyncio.sleep(0.01)
        assert group.holds_only_kept
        assert max(len(step.token_ids) for step in group.steps) <= 64 + len(requests)

    run(body)


@pytest.mark.parametrize("seed", range(12))
def test_no_token_lost_or_twice_over_random_losses(seed: int) -> None:
    async def body() -> None:
        dice = random.Random(seed)
        engine, group = make_engine(make_spec(ranks=3, prefill_token_budget=32), ranks=3)
        group.form()
        requests = [make_request(dice.randrange(1, 90), 20, number) for number in range(6)]

        async def break_it() -> None:
            for number in range(4):
                for _ in range(dice.randrange(1, 25)):
                    await asyncio.sleep(0)
                # A third one, of a request that is alone and has not advanced, would be its end.
                group.lose(announced=number % 2 == 0)
                await asyncio.sleep(0)
                group.form()

        results, _ = await asyncio.gather(
            asyncio.gather(*(collect(engine, request) for request in requests)), break_it()
        )
        assert results == [wanted(request) for request in requests]
        assert engine.statistics().losses == 4

    run(body)


def test_rope_boundary_is_crossed_by_prefilling_again() -> None:
    async def body() -> None:
        engine, group = make_engine(rope_boundary=20)
        group.form()
        short, long = make_request(15, 12), make_request(30, 4)
        both = await asyncio.gather(collect(engine, short), collect(engine, long))
        assert [*both] == [wanted(short), wanted(long)]
        again = [
            segment
            for step in group.steps
            for segment in step.segments
            if segment.start == 0 and segment.total == 21
        ]
        assert len(again) == 1

    run(body)


def test_stop_id_ends_and_is_delivered() -> None:
    async def body() -> None:
        engine, group = make_engine()
        group.form()
        full = make_request(5, 10)
        stop = wanted(full)[4]
        request = make_request(5, 10, stop_token_ids=(stop,))
        events = [event async for event in engine.generate(request)]
        assert [getattr(event, "token_id", None) for event in events] == wanted(full)[:5]
        assert [event.finish_reason for event in events] == [None] * 4 + ["stop"]

    run(body)


def test_leaving_frees_the_place() -> None:
    async def body() -> None:
        engine, group = make_engine(delay_s=0.001)
        group.form()
        events = engine.generate(make_request(5, 1000))
        await anext(events)
        assert engine.statistics().running == 1
        events.close()
        assert engine.statistics().running == 0
        assert engine.statistics().kv_tokens_reserved == 0
        while not group.holds_only_kept:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    run(body)


def test_waits_for_kv_in_order() -> None:
    async def body() -> None:
        engine, group = make_engine(kv_tokens=100)
        group.form()
        requests = [make_request(40, 40, number) for number in range(3)] + [make_request(5, 5, 9)]
        order: list[int] = []

        async def one(number: int) -> None:
            assert await collect(engine, requests[number]) == wanted(requests[number])
            order.append(number)

        await asyncio.gather(*(one(number) for number in range(4)))
        assert order[0] == 0
        assert order.index(1) < order.index(2)
        assert group.pipeline.most_reserved <= 100

    run(body)


def test_refusals() -> None:
    async def body() -> None:
        engine, group = make_engine(make_spec(max_concurrent_requests=2, max_model_len=64))
        with pytest.raises(NotServing, match="not formed"):
            await collect(engine, make_request(3, 3))
        group.form()
        with pytest.raises(PromptTooLong, match="context is 64"):
            engine.validate(make_request(60, 5))
        group.frozen = True
        tasks = [asyncio.create_task(collect(engine, make_request(3, 3))) for _ in range(10)]
        await asyncio.sleep(0.01)
        with pytest.raises(EngineFull):
            await collect(engine, make_request(3, 3))
        await asyncio.gather(*(cancelled(task) for task in tasks))

    run(body)


async def cancelled(task: asyncio.Task[list[int]]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_a_failed_group_refuses_new_requests_and_keeps_the_open_ones() -> None:
    async def body() -> None:
        engine, group = make_engine(delay_s=0.001)
        group.form()
        request = make_request(5, 40)
        events = engine.generate(request)
        got = [await next_id(events)]
        group.fail("3 groups in a row failed")
        with pytest.raises(NotServing, match="3 groups in a row") as refused:
            await collect(engine, make_request(3, 3))
        assert refused.value.retry_after_s == 20
        assert engine.statistics().failed
        assert not engine.ready
        await asyncio.sleep(0.05)
        group.form()
        got += await ids_of(events)
        assert got == wanted(request)
        assert not engine.statistics().failed

    run(body)


def test_more_choices_than_places_are_refused_for_good() -> None:
    async def body() -> None:
        engine, group = make_engine(make_spec(max_concurrent_requests=2))
        group.form()
        group.frozen = True
        engine.check_place(10)
        with pytest.raises(InvalidField, match=r"11 choices.*at most 10.*2 run and 8 wait"):
            engine.check_place(11)
        task = asyncio.create_task(collect(engine, make_request(3, 3)))
        await asyncio.sleep(0.01)
        engine.check_place(9)
        with pytest.raises(EngineFull):
            engine.check_place(10)
        task.cancel()

    run(body)


def test_the_context_is_no_longer_than_the_smallest_cache() -> None:
    async def body() -> None:
        engine, group = make_engine(max_positions=4096, kv_tokens=100)
        group.form()
        assert engine.max_model_len == 100
        fits = make_request(60, 40)
        assert await collect(engine, fits) == wanted(fits)
        with pytest.raises(PromptTooLong, match="100"):
            engine.validate(make_request(60, 41))

    run(body)


@pytest.mark.parametrize("outside", [VOCABULARY, -1])
def test_id_outside_the_vocabulary_never_reaches_a_stage(outside: int) -> None:
    async def body() -> None:
        engine, group = make_engine()
        group.form()
        request = GenerationRequest((1, outside), 3, SamplingParameters())
        with pytest.raises(InvalidField, match="vocabulary"):
            await collect(engine, request)
        assert not any(step.segments for step in group.steps)

    run(body)


def test_request_that_no_longer_fits_does_not_block_the_others() -> None:
    async def body() -> None:
        engine, group = make_engine(kv_tokens=200, delay_s=0.001)
        group.form()
        large = asyncio.create_task(collect(engine, make_request(50, 100)))
        small = make_request(3, 30)
        waiting = asyncio.create_task(collect(engine, small))
        await asyncio.sleep(0.01)
        group.lose()
        group.kv_tokens = 100
        group.form()
        with pytest.raises(PromptTooLong, match=r"150.*100"):
            await large
        assert await waiting == wanted(small)

    run(body)


def test_nothing_is_sent_into_an_epoch_that_is_over_already() -> None:
    async def body() -> None:
        faults: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, fault: faults.append(fault))
        engine, group = make_engine()
        group.form()
        await asyncio.sleep(0.01)
        request = make_request(5, 5)
        result = asyncio.create_task(collect(engine, request))
        await asyncio.sleep(0)  # it is submitted, its first step is due in the next turn
        group.state = "forming"
        await asyncio.sleep(0.01)
        assert not any(step.segments for step in group.steps)
        group.lose()
        group.form()
        assert await result == wanted(request)
        assert not faults

    run(body)


def test_probes_count_as_progress_only_while_nothing_is_asked() -> None:
    async def body() -> None:
        engine, group = make_engine(delay_s=0.001)
        group.form()
        await asyncio.sleep(0.02)
        assert group.progress == 1
        group.lose()
        tasks = [asyncio.create_task(collect(engine, make_request(600, 3)))]
        await asyncio.sleep(0.02)
        group.form()
        group.frozen_segments = True
        await asyncio.sleep(0.05)
        assert group.progress == 1
        tasks[0].cancel()

    run(body)


@pytest.mark.parametrize("what", ["next_step", "returned", "overdue", "remove"])
def test_a_fault_in_scheduling_is_told(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "WATCH_INTERVAL_S", 0.01)

    def fault(*_arguments: object) -> None:
        math.sqrt(-1.0)

    async def body() -> None:
        told: list[BaseException] = []
        group = StandInGroup(delay_s=0.001)
        group.listener = engine = Engine(group, on_fault=told.append)
        group.form()
        task = asyncio.create_task(collect(engine, make_request(5, 1000)))
        await asyncio.sleep(0.02)
        assert not told
        monkeypatch.setattr(Scheduler, what, fault)
        await asyncio.sleep(0.05)
        await cancelled(task)
        assert {str(error) for error in told} == {"math domain error"}

    run(body)


def test_deadline() -> None:
    async def body() -> None:
        engine, group = make_engine(make_spec(request_deadline_s=0.05), delay_s=0.01)
        group.form()
        with pytest.raises(DeadlineExceeded, match=r"0\.05"):
            await collect(engine, make_request(3, 1000))
        assert engine.statistics().running == 0

    run(body)


def test_the_deadline_frees_the_place_of_a_client_that_does_not_read() -> None:
    async def body() -> None:
        engine, group = make_engine(make_spec(request_deadline_s=0.05), delay_s=0.01)
        group.form()
        events = engine.generate(make_request(3, 1000))
        await anext(events)
        await asyncio.sleep(0.1)
        assert engine.statistics().running == 0
        steps = len(group.steps)
        await asyncio.sleep(0.1)
        assert len(group.steps) <= steps + 1
        with pytest.raises(DeadlineExceeded):
            async for _ in events:
                pass

    run(body)


def test_step_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.master.engine.scheduler.STEP_LIMIT_S", 0.2)

    async def body() -> None:
        engine, group = make_engine(delay_s=0.001)
        group.form()
        request = make_request(5, 50)
        events = engine.generate(request)
        got = [await next_id(events)]
        group.frozen = True
        while not group.abandoned:
            assert not engine.ready or group.state == "ready"
            await asyncio.sleep(0.01)
        assert "has not come back" in group.abandoned[0]
        assert not engine.ready
        group.frozen = False
        group.form()
        got += await ids_of(events)
        assert got == wanted(request)

    run(body)


def test_idle_pipeline_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PROBE_AFTER_S", 0.1)
    monkeypatch.setattr(watch, "WATCH_INTERVAL_S", 0.02)

    async def body() -> None:
        engine, group = make_engine()
        assert not engine.ready
        group.form()
        assert not engine.ready
        await asyncio.sleep(0.3)
        assert engine.ready
        assert len(group.steps) >= 3
        assert not any(step.segments for step in group.steps)

    run(body)


def test_open_requests_wait_for_a_group_until_their_own_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "REFUSE_AFTER_S", 0.2)

    async def body() -> None:
        engine, group = make_engine(delay_s=0.001)
        group.form()
        patient = make_request(5, 40)
        hasty = replace(make_request(6, 4000), deadline_s=0.3)
        tasks = [asyncio.create_task(collect(engine, item)) for item in (patient, hasty)]
        await asyncio.sleep(0.02)
        group.lose("rank 1: killed")
        late = make_request(7, 3)
        tasks.append(asyncio.create_task(collect(engine, late)))
        await asyncio.sleep(0.25)
        with pytest.raises(NotServing, match="rank 1: killed"):
            await collect(engine, make_request(3, 3))
        with pytest.raises(DeadlineExceeded, match=r"0\.3 s: rank 1: killed"):
            await tasks[1]
        group.form()
        assert await tasks[0] == wanted(patient)
        assert await tasks[2] == wanted(late)
        after = make_request(3, 3)
        assert await collect(engine, after) == wanted(after)

    run(body)


def test_a_request_is_entered_at_once_and_left_without_a_token_asked_for() -> None:
    async def body() -> None:
        engine, group = make_engine(make_spec(max_concurrent_requests=1, request_deadline_s=0.05))
        group.form()
        group.frozen = True
        entered = [engine.generate(make_request(3, 3)) for _ in range(5)]
        with pytest.raises(EngineFull):
            engine.generate(make_request(3, 3))
        for tokens in entered:
            tokens.close()
            tokens.close()
        assert engine.statistics().waiting == 0
        assert engine.statistics().kv_tokens_reserved == 0
        assert [token async for token in entered[0]] == []
        await asyncio.sleep(0.1)  # past the deadline, which is nobody's any more

    run(body)


def test_no_domain_can_keep_the_others_out() -> None:
    def of(domain: str) -> GenerationRequest:
        return replace(make_request(1, 5), domain=domain)

    async def body() -> None:
        engine, group = make_engine(make_spec(max_concurrent_requests=2))
        group.form()
        places = 2 + 4 * 2
        for _ in range(places):
            engine.generate(of("a"))
        with pytest.raises(EngineFull):
            engine.generate(of("a"))
        # Two domains: each has a share of half the places.
        for _ in range(places // 2):
            engine.generate(of("b"))
        with pytest.raises(EngineFull):
            engine.generate(of("b"))
        with pytest.raises(EngineFull):
            engine.check_place(places // 3 + 1, domain="c")
        engine.check_place(places // 3, domain="c")

    run(body)
