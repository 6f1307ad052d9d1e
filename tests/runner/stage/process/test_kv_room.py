"""The room for KV of a loaded stage: the rule, the largest step, a refusal in the plan's words.

No GPU has run this: what torch.cuda says is put in.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from contract.memory import FREE_SHARE_OF_GPU, PROCESS_BYTES, STEP_BYTES, MemoryShare
from contract.specs import GroupSpec, RankPart, StageSpec
from runner.errors import RunnerError
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel
from runner.stage.process import device
from runner.stage.process.device import Cpu, Cuda
from runner.stage.process.kv_room import kv_tokens, largest_step, try_step
from tests.small_models import OF_EACH_KIND, make_small_model

GB = 10**9
PLACE = torch.device("cuda:1")
SPEC = GroupSpec("d", "m", (RankPart((2, 6)),), max_concurrent_requests=4)


class CountingDevice(Cpu):
    """A CPU that says of a step what it took, as a GPU does; `peak` includes the step's slots."""

    def __init__(self, peak: int) -> None:
        self.peak = peak

    def peak_bytes(self, work: Callable[[], None], /) -> int:
        work()
        return self.peak


@pytest.fixture(scope="module")
def model(small_llama: Path) -> StageModel:
    return StageModel.load(Checkpoint(small_llama), (2, 6))


def tokens(memory: int | None, model: StageModel, device: Cpu, sharing: int = 1) -> int:
    stage = StageSpec("d", 0, memory_bytes=memory)
    return kv_tokens(stage, SPEC, model, device, sharing)


def share_of(model: StageModel) -> MemoryShare:
    return MemoryShare(0, (2, 6), model.weight_bytes, model.kv_bytes_per_token)


def test_declared_memory_is_counted_by_the_rule(model: StageModel) -> None:
    assert tokens(4 * GB, model, Cpu()) == share_of(model).kv_tokens(4 * GB)


def test_without_it_half_of_what_is_available_is_shared_by_the_node(
    model: StageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "available_bytes", lambda: 3 * GB)
    for ranks in (1, 3):
        found = tokens(None, model, Cpu(), ranks)
        assert found == 3 * GB // 2 // ranks // model.kv_bytes_per_token


def test_a_measured_step_is_held_back_without_its_slots(model: StageModel) -> None:
    planned = share_of(model).kv_tokens(4 * GB)
    longest = largest_step(SPEC.prefill_token_budget, 4, model.max_positions)
    slots = sum(item.capacity for item in longest.admissions) * model.kv_bytes_per_token
    for step, lost in ((0, 0), (STEP_BYTES, 0), (STEP_BYTES + GB, GB)):
        found = tokens(4 * GB, model, CountingDevice(slots + step))
        assert found == (share_of(model).kv_bytes(4 * GB) - lost) // model.kv_bytes_per_token
        assert found <= planned


def test_graphs_hold_a_second_step(small_llama: Path) -> None:
    graphs = StageModel.load(Checkpoint(small_llama), (2, 6), decode_graphs=True)
    longest = largest_step(SPEC.prefill_token_budget, 4, graphs.max_positions)
    slots = sum(item.capacity for item in longest.admissions) * graphs.kv_bytes_per_token
    found = tokens(4 * GB, graphs, CountingDevice(slots + STEP_BYTES))
    held_back = share_of(graphs).kv_bytes(4 * GB) - STEP_BYTES
    assert found == held_back // graphs.kv_bytes_per_token


def test_what_does_not_fit_is_refused_in_the_words_of_the_rule(model: StageModel) -> None:
    share = share_of(model)
    too_little = share.needed_bytes(1) - 1
    with pytest.raises(RunnerError) as raised:
        tokens(too_little, model, Cpu())
    assert str(raised.value) == share.refusal(too_little)
    with pytest.raises(
        RunnerError, match=r"rank 0: layers 2-5 do not fit .* 5,000,\d{3},\d{3} for"
    ):
        tokens(4 * GB, model, CountingDevice(5 * GB - PROCESS_BYTES + 10**6))


@pytest.mark.parametrize(("budget", "longest"), [(512, 8192), (512, 100), (1, 1)])
def test_the_largest_step_ends_where_the_longest_request_does(budget: int, longest: int) -> None:
    step = largest_step(budget, 3, longest)
    first, *others = step.segments
    assert first.start + first.length == first.total == step.admissions[0].capacity == longest
    assert first.length == min(budget, longest)
    assert [(item.start, item.length) for item in others] == [(0, 1)] * 2
    assert step.sampled_rows == 3
    assert len(step.token_ids) == first.length + 2


@pytest.mark.parametrize("architecture", OF_EACH_KIND)
def test_every_stage_can_compute_it_and_forgets_it(architecture: str, tmp_path: Path) -> None:
    make_small_model(architecture, tmp_path)
    checkpoint = Checkpoint(tmp_path)
    end = checkpoint.layout.num_layers
    for layers in ((0, 2), (2, end)):
        stage = StageModel.load(checkpoint, layers)
        try_step(largest_step(8, 3, 30), stage)
        with pytest.raises(RunnerError, match="has no KV slot"):
            stage.forward(largest_step(8, 3, 30), torch.zeros(10, stage.hidden_size))


def test_a_gpu_counts_what_is_declared_and_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _place: (20 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _place: 10 * GB)
    here = 30 * GB + PROCESS_BYTES
    assert Cuda(PLACE).memory_bytes(24 * GB, 0, 1) == 24 * GB
    assert Cuda(PLACE).memory_bytes(40 * GB, 0, 1) == here
    open_share = 10 * GB + PROCESS_BYTES + int(20 * GB * FREE_SHARE_OF_GPU)
    assert Cuda(PLACE).memory_bytes(None, 0, 1) == open_share


def test_a_gpus_peak_is_told_by_the_functions_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names and order; the figures only a GPU can show."""
    calls: list[str] = []

    def told(name: str, value: int = 0) -> Callable[..., int]:
        def call(*places: torch.device) -> int:
            assert places in ((PLACE,), ())
            calls.append(name)
            return value

        return call

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", told("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", told("allocated", 5))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", told("peak", 12))
    monkeypatch.setattr(torch.cuda, "synchronize", told("synchronize"))
    monkeypatch.setattr(torch.cuda, "empty_cache", told("empty"))
    assert Cuda(PLACE).peak_bytes(lambda: calls.append("work")) == 7
    assert calls == ["reset", "allocated", "work", "synchronize", "peak", "empty"]
    assert Cpu().peak_bytes(lambda: pytest.fail("nobody counts it")) is None
