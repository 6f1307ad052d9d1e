"""What a device's errors cost: a step that is computed once more, an epoch, a process.

The faults are put in where the model is called, on a CPU; nobody has seen them on a GPU.
"""

from __future__ import annotations

import asyncio
import random
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from runner.sampling_parameters import SamplingParameters
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel
from runner.stage.process import compute_loop, device
from runner.stage.process.control_thread import ControlThread
from runner.stage.process.device import Cpu, Cuda, device_of
from runner.stage.process.load import PreparedPart, describe
from runner.steps import Admission, Segment, Step
from tests.runner.running_stages import Master, Stages
from tests.runner.stage.process.faulty_stage import DEVICE_ERROR, ERRORS, FAULTS
from tests.runner.stage.process.lone_stage import LoneStage
from tests.waiting import wait_for

SAMPLING = SamplingParameters(
    temperature=1.2, top_p=0.9, repetition_penalty=1.3, frequency_penalty=0.7
)
PROMPT = (5, 6, 7, 8, 9, 6, 7)
ONE_STEP = Step(1, (Segment(1, 0, 3, 3, True),), [5, 6, 7], (Admission(1, 9, 3, 0, 0, SAMPLING),))


@pytest.fixture
def stage(small_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoneStage]:
    monkeypatch.setattr(compute_loop, "BEAT_INTERVAL_S", 0.02)
    stage = LoneStage(StageModel.load(Checkpoint(small_llama), (0, 6)))
    yield stage
    stage.end()


def write_a_text(stage: LoneStage) -> list[list[int]]:
    """A prompt in two chunks beside a request that decodes, releases, and admissions of both."""
    ids: list[list[int]] = []

    def step(*parts: tuple[int, int, tuple[int, ...]], **changes: Any) -> None:
        """Each part: request, start, token ids."""
        segments = tuple(
            Segment(request, start, len(part), max(len(PROMPT), start + len(part)), True)
            for request, start, part in parts
        )
        tokens = [token for _, _, part in parts for token in part]
        ids.append(stage.run(Step(len(ids), segments, tokens, **changes)))

    def admitted(request: int, prompt: int) -> tuple[Admission, ...]:
        return (Admission(request, 40, prompt, 0, request, SAMPLING),)

    step((1, 0, PROMPT), admissions=admitted(1, len(PROMPT)))
    step((2, 0, PROMPT[:4]), (1, 7, (ids[-1][0],)), admissions=admitted(2, len(PROMPT)))
    step((2, 4, PROMPT[4:]), (1, 8, (ids[-1][1],)))
    for place in range(6):
        step((2, 7 + place, (ids[-1][0],)), (1, 9 + place, (ids[-1][1],)))
    step((3, 0, PROMPT[::-1]), (2, 13, (ids[-1][0],)), admissions=admitted(3, 7), releases=(1,))
    step((3, 7, (ids[-1][0],)), (2, 14, (ids[-1][1],)))
    # One begins like the third and one takes its slot over, into a larger one and as it is.
    again = (*PROMPT[::-1], ids[-2][0])
    for end, capacity in ((4, 40), (6, 50)):
        [copied], [taken] = admitted(end, 8), admitted(end + 1, 8)
        copied = replace(copied, donor=end - 1, reused=5)
        taken = replace(taken, donor=end - 1, reused=7, capacity=capacity)
        step((end, 5, again[5:]), admissions=(copied,))
        step(
            (end + 1, 7, again[7:]),
            (end, 8, (ids[-1][0],)),
            admissions=(taken,),
            releases=(end - 1,),
        )
        step((end, 9, (ids[-1][1],)), (end + 1, 8, (ids[-1][0],)))
    return ids


class EveryOther:
    """A call that works, then raises, in turn: the first try of each step is in vain."""

    def __init__(
        self, call: Callable[..., Any], error: Callable[[], Exception], *, after: bool
    ) -> None:
        self._call, self._error, self._after = call, error, after
        self.calls = 0

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.calls += 1
        fails = self.calls % 2 == 1
        if fails and not self._after:
            raise self._error()
        result = self._call(*arguments, **keywords)
        if fails:
            raise self._error()
        return result


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("_model", "admit"),
        ("_model", "forward"),
        ("_model", "_run"),
        ("_sampler", "extend"),
        ("_sampler", "sample"),
    ],
)
def test_a_step_that_is_computed_twice_is_as_if_computed_once(
    stage: LoneStage, monkeypatch: pytest.MonkeyPatch, owner: str, name: str, after: bool
) -> None:
    expected = write_a_text(stage)
    target = getattr(stage.loop, owner)
    fault = EveryOther(getattr(target, name), ERRORS["memory"], after=after)
    monkeypatch.setattr(target, name, fault)
    assert write_a_text(stage) == expected
    assert fault.calls >= 6
    assert not stage.failures
    assert not stage.ends


def test_a_step_is_whole_wherever_among_its_layers_memory_ends(
    stage: LoneStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write_a_text(stage)
    layers = [
        module
        for module in stage.loop._model._model.modules()
        if isinstance(module, torch.nn.Module) and hasattr(module, "self_attn")
    ]
    assert len(layers) == 6
    choice = random.Random(4)
    armed: list[int] = []

    def fail(index: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if armed and armed[0] == index:
                armed.clear()
                raise MemoryError("in a layer")

        return hook

    for index, layer in enumerate(layers):
        layer.register_forward_hook(fail(index))
    run = stage.run

    def run_with_a_fault(step: Step) -> list[int]:
        armed[:] = [choice.randrange(6)]
        ids = run(step)
        assert not armed
        return ids

    monkeypatch.setattr(stage, "run", run_with_a_fault)
    assert write_a_text(stage) == expected


def test_what_the_first_try_held_is_free_when_memory_is_given_back(
    stage: LoneStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception's own traceback would hold it, and the second try find as little."""
    # pytest's record of a log line would hold it too.
    monkeypatch.setattr(compute_loop.logger, "disabled", True)
    held: list[weakref.ref[torch.Tensor]] = []
    seen: list[bool] = []

    def fail_once(*_: object) -> None:
        if not held:
            activation = torch.zeros(1000)
            held.append(weakref.ref(activation))
            raise ERRORS["memory"]()

    stage.loop._model._model.get_submodule("lm_head").register_forward_hook(fail_once)
    monkeypatch.setattr(device, "give_back_freed", lambda: seen.append(held[0]() is None))
    assert len(stage.run(ONE_STEP)) == 1
    assert seen == [True]


@pytest.mark.parametrize(
    ("errors", "failures", "ends"),
    [
        (["memory", "other"], ["rank 0 could not compute step 1: ValueError: nothing that"], []),
        (["other"], ["rank 0 could not compute step 1: ValueError: nothing that"], []),
        (["device"], [], ["rank 0: its device cpu failed in step 1: AcceleratorError: CUDA error"]),
        (["memory", "device"], [], ["rank 0: its device cpu failed in step 1: AcceleratorError"]),
    ],
    ids=" ".join,
)
def test_what_an_error_ends(
    stage: LoneStage,
    monkeypatch: pytest.MonkeyPatch,
    errors: list[str],
    failures: list[str],
    ends: list[str],
) -> None:
    waiting = list(errors)

    def fail(*_: object) -> None:
        raise ERRORS[waiting.pop(0)]()

    monkeypatch.setattr(stage.loop._model, "_run", fail)
    stage.send(ONE_STEP)
    wait_for(lambda: stage.failures or stage.ends, what="told")
    for told, expected in ((stage.failures, failures), (stage.ends, ends)):
        assert len(told) == len(expected)
        assert all(one.startswith(two) for one, two in zip(told, expected, strict=True))
    assert not waiting
    assert not stage.links.open


def test_a_step_without_memory_comes_back_aborted_and_is_forgotten(
    stage: LoneStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind it so does what goes on with its requests, until they are admitted again."""
    failing = [True]
    run = stage.loop._model._run

    def fail(*arguments: Any) -> Any:
        if failing[0]:
            raise ERRORS["memory"]()
        return run(*arguments)

    monkeypatch.setattr(stage.loop._model, "_run", fail)

    def step(number: int, *going_on: int, new: tuple[int, ...] = ()) -> bool:
        """Whether it was computed."""
        segments = (
            *(Segment(request, 3, 1, 4, True) for request in going_on),
            *(Segment(request, 0, 3, 3, True) for request in new),
        )
        ids = [9] * len(going_on) + [5, 6, 7] * len(new)
        admissions = tuple(Admission(request, 9, 3, 0, 0, SAMPLING) for request in new)
        result = stage.answer(Step(number, segments, ids, admissions))
        assert len(result.tokens) == (0 if result.aborted else len(segments))
        return not result.aborted

    failing[0] = False
    assert step(1, new=(1, 2))
    failing[0] = True
    assert not step(2, 1, new=(3,))
    failing[0] = False
    assert set(stage.loop._model._pool._slots) == {2}
    assert step(3, 2)
    assert not step(4, 2, 3)  # what is computed beside a forgotten one is forgotten too
    assert not step(5, 2)
    assert not step(6, 1)
    assert step(7)
    assert step(8, new=(2, 3))
    assert step(9, 2, 3, new=(1,))
    assert stage.answer(Step(10, (), [], (), (1, 2, 3))).tokens == ()
    assert not stage.loop._model._pool._slots
    assert not stage.failures
    assert not stage.ends


def test_an_idle_loop_asks_its_device_and_livez_tells_the_answer(
    stage: LoneStage, small_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages(str(small_llama), [(0, 6)], tmp_path)
    spec, model = stages.stage_specs[0], stage.loop._model
    control = ControlThread(spec, stages.token)
    part = PreparedPart(stages.spec, "a commit", (0, 6), Checkpoint(small_llama), 1)
    control._orders._loading = part
    control.loaded(part, describe(spec, part, model), stage.loop)
    control.start()
    asked: list[int] = []
    monkeypatch.setattr(Cpu, "ask", lambda _self: asked.append(1))

    def answer() -> httpx.Response | None:
        try:
            return stages.health(0, "/livez")
        except httpx.HTTPError:
            return None

    assert wait_for(answer, what="health").status_code == 200
    wait_for(lambda: len(asked) > 3, what="asked")

    def broken(_self: Cpu) -> None:
        raise ERRORS["idle"]()

    monkeypatch.setattr(Cpu, "ask", broken)
    wait_for(lambda: stage.ends, what="ended")
    reason = f"rank 0: its device cpu failed while idle: AcceleratorError: {DEVICE_ERROR}"
    assert stage.ends == [reason]
    answered = stages.health(0, "/livez")
    assert answered.status_code == 503
    assert answered.json() == {"status": "unavailable", "reason": reason}


def test_a_gpu_is_asked_and_emptied_by_the_functions_of_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their names and arguments; that they do what is hoped of them only a GPU can show."""
    place = torch.device("cuda:1")
    calls: list[object] = []

    class Stream:
        def query(self) -> bool:
            calls.append("query")
            return True

    def current_stream(where: torch.device) -> Stream:
        calls.append(where)
        return Stream()

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty"))
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where: calls.append(("free", where)))
    chosen = device_of(place)
    assert isinstance(chosen, Cuda)
    chosen.give_back()
    chosen.ask()
    assert calls == ["empty", place, "query", ("free", place)]
    assert isinstance(device_of(torch.device("cpu")), Cpu)


class TestProcesses:
    """Two real stages and a real master."""

    COUNT = 8

    @pytest.fixture
    def stages(
        self, small_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Stages]:
        monkeypatch.setenv(FAULTS, str(tmp_path / "faults"))
        stages = Stages(str(small_llama), [(0, 3), (3, 6)], tmp_path)
        stages.module = "tests.runner.stage.process.faulty_stage"
        stages.start()
        yield stages
        stages.end()

    def test_the_text_goes_on_after_each_error(self, stages: Stages, tmp_path: Path) -> None:
        def put(rank: int, words: str) -> None:
            (tmp_path / f"faults-{rank}").write_text(words)

        async def write(master: Master) -> list[int]:
            ids = await master.generate(1, PROMPT, self.COUNT)
            master.group.note_progress()
            return ids

        async def lose(master: Master, rank: int, words: str, code: int | None = None) -> str:
            """Why the epoch ended; with `code` the process too. The next one forms."""
            losses, process = master.recorder.losses, stages.processes[rank]
            put(rank, words)
            writing = asyncio.create_task(write(master)) if words != "idle" else None
            await master.until(lambda: losses, "lost")
            if writing is not None:
                writing.cancel()
            if code is not None:
                await master.until(lambda: process.poll() is not None, "ended")
                assert process.returncode == code
                stages.start(rank)
            await master.until(lambda: master.group.state == "ready", "formed")
            (reason,) = losses
            losses.clear()
            return reason

        async def work() -> None:
            async with stages.master() as master:
                await master.until_formed()
                expected, before = await write(master), stages.process_ids()
                put(0, "memory")
                put(1, "memory")
                assert await write(master) == expected
                assert not master.recorder.losses
                for rank in (0, 1):
                    reason = await lose(master, rank, "other")
                    assert f"rank {rank} could not compute step" in reason
                    assert await write(master) == expected
                assert stages.process_ids() == before
                for rank, words, when in ((1, "device", "in step"), (0, "idle", "while idle")):
                    reason = await lose(master, rank, words, code=1)
                    assert f"rank {rank}: its device cpu failed {when}" in reason
                    assert DEVICE_ERROR in reason
                    assert f"its device cpu failed {when}" in stages.log(rank)
                    assert await write(master) == expected

        asyncio.run(work())
