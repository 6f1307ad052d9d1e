"""The engine over real stages: what a prompt's ids are told, and what too little memory costs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from runner.errors import NoMemory
from runner.master.engine.engine import Engine
from runner.master.engine.requests import GenerationRequest, PromptEvent, TokenEvent
from runner.sampling_parameters import SamplingParameters
from tests.runner.running_stages import Stages
from tests.runner.stage.process.faulty_stage import FAULTS

LAYERS = 6
BUDGET = 16


@asynccontextmanager
async def serving(stages: Stages) -> AsyncIterator[Engine]:
    group = stages.group()
    engine = Engine(group)
    await group.start(engine)
    try:
        async with asyncio.timeout(90):
            while not engine.ready:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield engine
    finally:
        await group.stop()


@dataclass
class Answer:
    prompt: PromptEvent | None
    tokens: list[TokenEvent]

    @property
    def ids(self) -> list[int]:
        return [event.token_id for event in self.tokens]


async def answer(engine: Engine, request: GenerationRequest) -> Answer:
    found = Answer(None, [])
    async with asyncio.timeout(90):
        async for event in engine.generate(request):
            if isinstance(event, PromptEvent):
                assert found.prompt is None
                assert not found.tokens
                found.prompt = event
            else:
                found.tokens.append(event)
    return found


def prompt(length: int) -> tuple[int, ...]:
    chance = random.Random(length)
    return tuple(chance.randrange(1, 128) for _ in range(length))


def asked(length: int, new_tokens: int = 6, **changes: Any) -> GenerationRequest:
    sampling = SamplingParameters(temperature=0, seed=1, logprobs=2)
    return GenerationRequest(prompt(length), new_tokens, sampling, **changes)


def run(stages: Stages, body: Callable[[Engine], Awaitable[None]]) -> None:
    async def work() -> None:
        async with serving(stages) as engine:
            await body(engine)

    asyncio.run(work())


async def in_the_middle(engine: Engine) -> None:
    """Some of a prompt's scores are back, others are not."""
    while not any(0 < len(entry.scores) < 60 for entry in engine._ledger.open.values()):  # noqa: ASYNC110
        await asyncio.sleep(0)


def layers(ranks: int) -> list[tuple[int, int]]:
    return [(LAYERS * rank // ranks, LAYERS * (rank + 1) // ranks) for rank in range(ranks)]


class TestPromptScores:
    @pytest.fixture(params=[1, 2, pytest.param(4, marks=pytest.mark.slow)])
    def stages(
        self, request: pytest.FixtureRequest, small_llama: Path, tmp_path: Path
    ) -> Iterator[Stages]:
        stages = Stages(
            str(small_llama), layers(request.param), tmp_path, prefill_token_budget=BUDGET
        )
        stages.start()
        yield stages
        stages.end()

    def check(self, model: Any, found: Answer, request: GenerationRequest) -> None:
        ids = list(request.prompt_ids)
        assert found.prompt is not None
        first, *others = found.prompt.ids
        assert first == TokenEvent(ids[0])
        assert [event.token_id for event in others] == ids[1:]
        with torch.no_grad():
            raw = torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)
        for row, event in zip(raw, others, strict=False):
            assert event.logprob == pytest.approx(float(row[event.token_id]), abs=2e-5)
            best = row.topk(2).values.tolist()
            assert [value for _, value in event.alternatives] == pytest.approx(best, abs=2e-5)
        if found.tokens:
            assert found.tokens[0].token_id == int(raw[-1].argmax())
        assert len(found.tokens) == request.max_new_tokens

    def test_equal_to_transformers_in_chunks_and_through_a_lost_epoch(
        self, stages: Stages, small_llama: Path
    ) -> None:
        model = AutoModelForCausalLM.from_pretrained(small_llama, dtype=torch.float32).eval()
        requests = [
            asked(70, 3, echo=True), asked(1, 0, echo=True), asked(40, 0, echo=True),
            asked(17, 4), asked(16, 2, echo=True),
        ]  # fmt: skip

        async def body(engine: Engine) -> None:
            for losses in (0, 1):
                tasks = [asyncio.create_task(answer(engine, request)) for request in requests]
                if losses:
                    await in_the_middle(engine)
                    engine._group.abandon_epoch("the test wants it so")
                for request, found in zip(requests, await asyncio.gather(*tasks), strict=True):
                    if request.echo:
                        self.check(model, found, request)
                    else:
                        assert found.prompt is None
                assert engine.statistics().losses == losses
            assert engine.statistics().running == engine.statistics().kv_tokens_reserved == 0

        run(stages, body)


class TestPrefixReuse:
    """What is reused changes no token: asked in a domain of its own, each is computed whole."""

    @pytest.fixture(params=[1, 2, pytest.param(4, marks=pytest.mark.slow)])
    def stages(
        self, request: pytest.FixtureRequest, small_llama: Path, tmp_path: Path
    ) -> Iterator[Stages]:
        stages = Stages(
            str(small_llama), layers(request.param), tmp_path, prefill_token_budget=BUDGET
        )
        stages.start()
        yield stages
        stages.end()

    def further(self, chance: random.Random, said: tuple[int, ...]) -> GenerationRequest:
        """What goes on from `said`, or from a part of it."""
        if chance.random() < 0.3:
            said = said[: chance.randrange(len(said))]
        new = tuple(chance.randrange(1, 128) for _ in range(chance.randrange(1, 30)))
        sampling = SamplingParameters(
            temperature=chance.choice((0, 1.0)),
            seed=chance.randrange(100),
            repetition_penalty=chance.choice((1.0, 1.3)),
            frequency_penalty=chance.choice((0.0, 0.7)),
            top_p=chance.choice((1.0, 0.8)),
            logprobs=chance.choice((-1, 2)),
        )
        return GenerationRequest(
            said + new, chance.randrange(1, 12), sampling, echo=chance.random() < 0.2
        )

    async def whole(self, engine: Engine, request: GenerationRequest, place: int) -> Answer:
        alone = await answer(engine, replace(request, domain=f"alone-{place}"))
        assert engine.statistics().reused_tokens == 0
        return alone

    def test_random_histories_equal_what_is_computed_whole(self, stages: Stages) -> None:
        chance = random.Random(3)

        async def body(engine: Engine) -> None:
            said: list[tuple[int, ...]] = [prompt(20), prompt(37)]
            asked_for, expected = [], []
            for place in range(24):
                request = self.further(chance, chance.choice(said))
                found = await self.whole(engine, request, place)
                asked_for.append(request)
                expected.append(found)
                said.append((*request.prompt_ids, *found.ids))
            for losses in (0, 1):
                for first in range(0, 24, 6):
                    choices = [
                        asyncio.create_task(answer(engine, request))
                        for request in asked_for[first : first + 6]
                        for _ in range(2)
                    ]
                    if losses and first == 6:
                        await asyncio.sleep(0.05)
                        engine._group.abandon_epoch("the test wants it so")
                    answers = await asyncio.gather(*choices)
                    for place, found in enumerate(answers):
                        self.check(found, expected[first + place // 2])
                assert engine.statistics().losses == losses
            statistics = engine.statistics()
            assert statistics.reused_tokens > statistics.admitted_tokens / 4
            assert statistics.running == statistics.kv_tokens_reserved == 0
            assert 0 < statistics.kv_tokens_kept < statistics.kv_tokens

        run(stages, body)

    def check(self, found: Answer, expected: Answer) -> None:
        assert found.ids == expected.ids
        assert (found.prompt is None) == (expected.prompt is None)
        for mine, theirs in zip(found.tokens, expected.tokens, strict=True):
            assert mine.logprob == pytest.approx(theirs.logprob, abs=2e-5)


class TestTooLittleMemory:
    @pytest.fixture
    def stages(
        self, small_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Stages]:
        monkeypatch.setenv(FAULTS, str(tmp_path / "faults"))
        stages = Stages(str(small_llama), layers(3), tmp_path, prefill_token_budget=BUDGET)
        stages.module = "tests.runner.stage.process.faulty_stage"
        stages.start()
        yield stages
        stages.end()

    def test_texts_are_what_they_would_be_and_one_that_never_fits_is_told(
        self, stages: Stages, tmp_path: Path
    ) -> None:
        requests = [asked(length, 20, echo=length > 20) for length in (9, 40, 25, 3, 33)]

        def put(rank: int, words: Sequence[str]) -> Path:
            file = tmp_path / f"faults-{rank}"
            file.write_text(" ".join(words))
            return file

        async def all_of(engine: Engine) -> list[Answer]:
            return await asyncio.gather(*(answer(engine, request) for request in requests))

        async def body(engine: Engine) -> None:
            expected = await all_of(engine)
            chance = random.Random(5)
            for rank in (0, 1, 2):
                # Computed, then twice without memory, several times over.
                words = [*(["well"] * chance.randrange(1, 9)), "memory", "memory"] * 3
                file = put(rank, words)
                found = await all_of(engine)
                assert file.read_text() == ""
                assert [item.ids for item in found] == [item.ids for item in expected]
                for one, other in zip(found, expected, strict=True):
                    assert (one.prompt is None) == (other.prompt is None)
                    for mine, theirs in zip(
                        one.prompt.ids if one.prompt else (),
                        other.prompt.ids if other.prompt else (),
                        strict=True,
                    ):
                        assert mine.token_id == theirs.token_id
                        assert mine.logprob == pytest.approx(theirs.logprob, abs=2e-5)
            assert engine.statistics().losses == 0
            file = put(1, ["memory"] * 1000)
            with pytest.raises(NoMemory, match="40 prompt tokens and 20 new ones"):
                await answer(engine, requests[1])
            file.unlink()
            assert (await answer(engine, requests[1])).ids == expected[1].ids
            statistics = engine.statistics()
            assert statistics.losses == statistics.running == statistics.waiting == 0
            assert statistics.kv_tokens_reserved == 0

        run(stages, body)
