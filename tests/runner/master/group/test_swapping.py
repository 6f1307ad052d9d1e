"""Another spec takes the place of the one that is served, with real stages of two architectures."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers

from contract.specs import GroupSpec, RankPart, spec_hash
from runner.errors import ModelSwapped, NotServing
from runner.master.engine.engine import Engine
from runner.master.engine.requests import GenerationRequest, TokenEvent
from runner.master.group.swap import Swap, SwapRunning
from runner.sampling_parameters import SamplingParameters
from tests.runner.running_stages import Stages
from tests.small_models import LAYERS as OTHER_LAYERS
from tests.small_models import make_small_model

pytestmark = pytest.mark.slow
PROMPT = (5, 17, 99, 3, 42, 7, 64)
COUNT = 12
LIMIT_S = 240


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    make_small_model("gpt2", folder)
    return folder


def unsplit(folder: Path) -> list[int]:
    """What transformers generates."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    output = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False
    )
    ids: list[int] = output[0, len(PROMPT) :].tolist()
    return ids


@pytest.fixture(scope="module")
def first(small_llama: Path) -> list[int]:
    return unsplit(small_llama)


@pytest.fixture(scope="module")
def second(other_model: Path) -> list[int]:
    return unsplit(other_model)


class Group:
    """A master's engine over stages that outlive it."""

    def __init__(self, stages: Stages, engine: Engine) -> None:
        self.stages, self.engine = stages, engine

    async def until(self, condition: Any, what: str) -> None:
        try:
            async with asyncio.timeout(LIMIT_S):
                while not condition():  # noqa: ASYNC110
                    await asyncio.sleep(0.002)  # no phase is shorter
        except TimeoutError:
            logs = [self.stages.log(rank)[-3000:] for rank in self.stages.processes]
            swap = self.engine.swap and self.engine.swap.describe()
            raise AssertionError(
                f"{what}: {self.engine.reason}; {swap}\n" + "\n".join(logs)
            ) from None

    async def until_ready(self) -> None:
        await self.until(lambda: self.engine.ready, "ready")

    async def until_ended(self, swap: Swap | None) -> Swap:
        assert swap is not None
        await self.until(lambda: not swap.running, "the swap has ended")
        return swap

    async def push(self, spec: GroupSpec) -> Swap | None:
        """As whoever pushes does: again while the master knows nobody."""
        while True:
            with contextlib.suppress(NotServing):
                return await self.engine.push(spec)

    def request(self, count: int = COUNT) -> GenerationRequest:
        return GenerationRequest(PROMPT, count, SamplingParameters(temperature=0, seed=1))

    async def generate(self, count: int = COUNT) -> list[int]:
        tokens = self.engine.generate(self.request(count))
        return [event.token_id async for event in tokens if isinstance(event, TokenEvent)]

    def events(self) -> list[str]:
        found: Any = self.engine.topology()["events"]
        return [event["text"] for event in found]


@contextlib.asynccontextmanager
async def serving(stages: Stages) -> AsyncIterator[Group]:
    """One life of a master."""
    group = stages.group()
    engine = Engine(group)
    await group.start(engine)
    try:
        yield Group(stages, engine)
    finally:
        await group.stop()


@contextlib.contextmanager
def started(model: Path, folder: Path) -> Iterator[Stages]:
    """Two ranks of three layers each, and a third process without a part."""
    stages = Stages(str(model), [(0, 3), (3, 6)], folder, spare=1)
    stages.start()
    try:
        yield stages
    finally:
        stages.end()


@pytest.fixture(scope="module")
def kept(small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    with started(small_llama, tmp_path_factory.mktemp("stages")) as stages:
        yield stages


@pytest.fixture
def new_stages(small_llama: Path, tmp_path: Path) -> Iterator[Stages]:
    """They have held nothing before."""
    with started(small_llama, tmp_path) as stages:
        yield stages


@pytest.fixture
def stages(kept: Stages) -> Iterator[Stages]:
    """Each test's masters find them with the first model, whatever the test before has left."""
    former = kept.spec

    async def back() -> None:
        async with serving(kept) as group:
            await group.until_ready()
            swap = await group.engine.push(former)
            if swap is not None:
                assert (await group.until_ended(swap)).phase == "serving"

    run(back())
    yield kept
    kept.spec = former


def other_spec(stages: Stages, model: Path, *borders: int) -> GroupSpec:
    """The other model over as many ranks as there are parts between the borders."""
    edges = borders or (0, 2, OTHER_LAYERS)
    parts = tuple(RankPart((a, b)) for a, b in itertools.pairwise(edges))
    return replace(stages.spec, model_name=str(model), ranks=parts)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_there_and_back(
    stages: Stages, other_model: Path, first: list[int], second: list[int]
) -> None:
    async def work() -> None:
        async with serving(stages) as group:
            await group.until_ready()
            assert await group.generate() == first
            assert stages.health(2, "/readyz").status_code == 200  # joined, without a part
            there = other_spec(stages, other_model)
            swap = await group.engine.push(there)
            assert swap is not None
            assert swap.phase == "preparing"
            assert await group.engine.push(there) is swap
            with pytest.raises(SwapRunning, match=swap.spec_hash[:12]):
                await group.engine.push(replace(there, dtype="bfloat16"))
            await group.until_ended(swap)
            assert (swap.phase, swap.reason) == ("serving", "")
            assert await group.generate() == second
            assert group.engine.in_force is not None
            assert group.engine.in_force.spec == there
            assert f"model changed from {stages.spec.model_name}" in group.events()[-1]
            assert "away" in group.events()[-1]
            # More ranks and other layers, then fewer, then back.
            for spec, wanted in (
                (other_spec(stages, other_model, 0, 1, 2, OTHER_LAYERS), second),
                (other_spec(stages, other_model, 0, OTHER_LAYERS), second),
                (stages.spec, first),
            ):
                ended = await group.until_ended(await group.engine.push(spec))
                assert (ended.phase, ended.reason) == ("serving", "")
                assert await group.generate() == wanted
            assert await group.engine.push(stages.spec) is None
        # The next master goes on with it, whatever its file says.
        stages.spec, file = other_spec(stages, other_model), stages.spec
        async with serving(stages) as group:
            await group.until_ready()
            assert group.engine.in_force is not None
            assert group.engine.in_force.spec == file
            assert await group.generate() == first

    run(work())


def config_alone(folder: Path, like: Path | None, **changes: Any) -> str:
    """What is refused before a weight is looked at; a tokenizer is none of a group's business."""
    known = {} if like is None else json.loads((like / "config.json").read_text())
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(known | changes))
    return str(folder)


def test_what_cannot_be_leaves_the_old_one_serving(
    stages: Stages, small_llama: Path, other_model: Path, tmp_path: Path, first: list[int]
) -> None:
    (tmp_path / "none").mkdir()
    large = config_alone(tmp_path / "large", small_llama, vocab_size=100_000_000)
    mamba = config_alone(tmp_path / "mamba", None, model_type="mamba")
    cut = tmp_path / "cut"
    shutil.copytree(other_model, cut)
    for file in cut.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-100])
    bad = {
        # Of whichever rank says so first.
        "do not fit its memory": replace(stages.spec, model_name=large),
        "model_type mamba cannot be split": replace(stages.spec, model_name=mamba),
        "safetensors": other_spec(stages, cut),
        "there is no such folder": replace(stages.spec, model_name="/no/such/folder"),
        "has no config.json": replace(stages.spec, model_name=str(tmp_path / "none")),
        "layers: those of all ranks end at 3": other_spec(stages, other_model, 0, 2, 3),
        "dtype = 'int8'": replace(stages.spec, dtype="int8"),
    }

    async def work() -> None:
        async with serving(stages) as group:
            await group.until_ready()
            for reason, spec in bad.items():
                open_request = asyncio.create_task(group.generate())
                ended = await group.until_ended(await group.engine.push(spec))
                assert ended.phase == "failed"
                assert reason in ended.reason
                assert any(
                    item.reason and item.reason in ended.reason for item in ended.ranks
                ) == ended.reason.startswith("rank ")
                assert await open_request == first
                assert group.engine.ready
            assert group.engine.statistics().losses == 0
            assert await group.engine.push(stages.spec) is None

    run(work())


def test_what_fits_beside_is_loaded_before_the_drain(
    stages: Stages, other_model: Path, second: list[int]
) -> None:
    def loads() -> list[int]:
        return [stages.log(rank).count(f"of {other_model}") for rank in (0, 1)]

    async def work() -> None:
        async with serving(stages) as group:
            await group.until_ready()
            before = loads()
            swap = await group.until_ended(await group.engine.push(other_spec(stages, other_model)))
            assert [item.loaded_ahead for item in swap.ranks] == [True, True]
            assert await group.generate() == second
            assert loads() == [count + 1 for count in before]  # once

    run(work())


def test_what_does_not_fit_beside_is_loaded_when_the_other_is_gone(
    small_llama: Path, other_model: Path, tmp_path: Path, second: list[int]
) -> None:
    # Enough for each of the two, and for the largest step; too little for both.
    stages = Stages(str(small_llama), [(0, 3), (3, 6)], tmp_path, memory_bytes=1_200_000_000)
    stages.start()

    async def work() -> None:
        async with serving(stages) as group:
            await group.until_ready()
            swap = await group.until_ended(await group.engine.push(other_spec(stages, other_model)))
            assert (swap.phase, [item.loaded_ahead for item in swap.ranks]) == (
                "serving",
                [False, False],
            )
            assert await group.generate() == second
            assert "are wanted to load" in stages.log(0)

    try:
        run(work())
    finally:
        stages.end()


@pytest.mark.parametrize("lost", ["a rank", "the master"])
def test_what_was_loaded_for_nothing_is_given_back(
    new_stages: Stages, tmp_path: Path, first: list[int], lost: str
) -> None:
    stages = new_stages
    large = tmp_path / "large"
    make_small_model("llama", large, hidden_size=512, vocab_size=100_000)
    size = 100_000 * 512 * 4

    def resident() -> int:
        return psutil.Process(stages.processes[0].pid).memory_info().rss

    async def until_given_back(group: Group, before: int) -> None:
        await group.until(lambda: resident() < before + 0.3 * size, "given back")
        await group.until_ready()
        assert await group.generate() == first

    async def work() -> None:
        async with serving(stages) as group:
            await group.until_ready()
            assert await group.generate() == first
            before = resident()
            stages.signal(1, signal.SIGSTOP)
            swap = await group.engine.push(other_spec(stages, large))
            assert swap is not None
            await group.until(lambda: swap.ranks[0].loaded_ahead, "loaded ahead")
            assert resident() > before + 0.9 * size
            if lost == "a rank":
                stages.restart(1)
                assert (await group.until_ended(swap)).phase == "failed"
                await until_given_back(group, before)
                return
        async with serving(stages) as group:
            stages.restart(1)
            await until_given_back(group, before)

    run(work())


def test_limits_are_taken_from_one_step_to_the_next(stages: Stages, first: list[int]) -> None:
    async def work() -> None:
        async with serving(stages) as group:
            await group.until_ready()
            tokens = group.engine.generate(group.request(100))
            await anext(tokens)
            wider = replace(stages.spec, max_concurrent_requests=200, prefill_token_budget=2048)
            assert await group.engine.push(wider) is None
            found = await asyncio.gather(*(group.generate() for _ in range(100)))
            assert found == [first] * 100
            tokens.close()
            assert group.engine.statistics().losses == 0
            group.engine._group.abandon_epoch("to form again")
            await group.until_ready()
            assert await group.generate() == first

    run(work())


def test_what_runs_is_waited_for_and_ends_for_the_change_when_its_time_is_up(
    stages: Stages, other_model: Path, first: list[int], second: list[int]
) -> None:
    async def work() -> None:
        async with serving(stages) as group:
            await group.until_ready()
            running = asyncio.create_task(group.generate(100))
            await asyncio.sleep(0)
            ended = await group.until_ended(
                await group.engine.push(other_spec(stages, other_model))
            )
            assert ended.phase == "serving"
            assert (await running)[:COUNT] == first
            assert len(running.result()) == 100
            running = asyncio.create_task(group.generate(240))
            await asyncio.sleep(0)
            back = replace(stages.spec, swap_drain_s=0.0)
            ended = await group.until_ended(await group.engine.push(back))
            assert ended.phase == "serving"
            with contextlib.suppress(ModelSwapped):  # a quick machine has finished it before
                assert (await running)[:COUNT] == second
            assert await group.generate() == first

    run(work())


def test_the_same_model_in_another_cut_goes_on_with_what_runs(
    stages: Stages, first: list[int]
) -> None:
    async def work() -> None:
        async with serving(stages) as group:
            await group.until_ready()
            running = [asyncio.create_task(group.generate(200)) for _ in range(3)]
            await asyncio.sleep(0.2)
            cut = (RankPart((0, 1)), RankPart((1, 4)), RankPart((4, 6)))
            spec = replace(stages.spec, ranks=cut, swap_drain_s=0.0)
            ended = await group.until_ended(await group.engine.push(spec))
            assert ended.phase == "serving"
            found = await asyncio.gather(*running)
            assert [ids[:COUNT] for ids in found] == [first] * 3
            assert all(len(ids) == 200 for ids in found)

    run(work())


@pytest.mark.parametrize("phase", ["preparing", "draining", "loading"])
def test_a_stage_that_is_killed_in_the_middle_brings_the_old_one_back(
    stages: Stages, other_model: Path, first: list[int], phase: str
) -> None:
    async def work() -> None:
        async with serving(stages) as group:
            await group.until_ready()
            tokens = group.engine.generate(group.request(200))
            await anext(tokens)
            swap = await group.engine.push(
                replace(other_spec(stages, other_model), swap_drain_s=1.0)
            )
            assert swap is not None
            await group.until(lambda: swap.phase in (phase, "failed", "serving"), phase)
            assert swap.phase == phase
            stages.signal(1, signal.SIGKILL)
            tokens.close()
            await group.until_ended(swap)
            stages.restart(1)
            assert swap.phase == "failed"
            assert "rank 1" in swap.reason
            await group.until_ready()
            assert group.engine.in_force is not None
            assert group.engine.in_force.spec == stages.spec
            assert await group.generate() == first
            assert not group.engine.gate.closed

    run(work())


@pytest.mark.parametrize("phase", ["preparing", "draining", "loading"])
def test_a_master_that_ends_in_the_middle_leaves_one_of_the_two(
    stages: Stages, other_model: Path, first: list[int], second: list[int], phase: str
) -> None:
    async def work() -> None:
        spec = replace(other_spec(stages, other_model), swap_drain_s=1.0)
        async with serving(stages) as group:
            await group.until_ready()
            tokens = group.engine.generate(group.request(200))
            await anext(tokens)
            swap = await group.engine.push(spec)
            assert swap is not None
            await group.until(lambda: swap.phase in (phase, "serving"), phase)
        async with serving(stages) as group:
            await group.until_ready()
            served = group.engine.in_force
            assert served is not None
            assert (
                await group.generate()
                == {
                    spec_hash(stages.spec): first,
                    spec_hash(spec): second,
                }[served.spec_hash]
            )
            # Whoever pushed it pushes it again.
            swap = await group.engine.push(spec)
            if swap is not None:
                assert (await group.until_ended(swap)).phase == "serving"
            assert await group.generate() == second

    run(work())


def test_a_rank_that_is_away_when_a_spec_is_pushed_serves_what_runs_first(
    stages: Stages, other_model: Path, first: list[int], second: list[int]
) -> None:
    async def work() -> None:
        async with serving(stages) as group:
            await group.until_ready()
            running = asyncio.create_task(group.generate(200))
            await asyncio.sleep(0)
            stages.processes[0].kill()
            await group.until(lambda: not group.engine.ready, "lost")
            swap = await group.engine.push(other_spec(stages, other_model))
            stages.restart(0)
            assert (await group.until_ended(swap)).phase == "serving"
            # It could not have ended by the weights of the other one, and was not cut short.
            assert len(await running) == 200
            assert running.result()[:COUNT] == first
            assert await group.generate() == second

    run(work())


def test_where_the_file_s_model_cannot_be_had_another_one_can_be_pushed(
    new_stages: Stages, first: list[int]
) -> None:
    stages = new_stages

    async def work() -> None:
        spec, stages.spec = stages.spec, replace(stages.spec, model_name="/no/such/folder")
        async with serving(stages) as group:
            await group.until(lambda: "/no/such/folder" in group.engine.reason, "told")
            ended = await group.until_ended(await group.push(spec))
            assert ended.phase == "serving"
            await group.until_ready()
            assert await group.generate() == first

    run(work())


def test_a_group_without_a_file_waits_for_a_spec(new_stages: Stages, first: list[int]) -> None:
    stages = new_stages

    async def work() -> None:
        spec, stages.spec = stages.spec, None  # type: ignore[assignment]
        async with serving(stages) as group:
            await group.until(lambda: "to be pushed" in group.engine.reason, "waits")
            bad = replace(spec, model_name="/no/such/folder")
            ended = await group.until_ended(await group.push(bad))
            assert ended.phase == "failed"
            assert group.engine.in_force is None
            ended = await group.until_ended(await group.engine.push(spec))
            assert ended.phase == "serving"
            await group.until_ready()
            assert await group.generate() == first

    run(work())
