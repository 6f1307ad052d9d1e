"""Weights loaded beside others: what room there is for them, and what computes meanwhile."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers.utils import ContextManagers

from contract.memory import STEP_BYTES
from contract.specs import GroupSpec, RankPart, StageSpec
from runner.errors import RunnerError
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.pruned import constructing, make_class
from runner.stage.process import ahead, device
from runner.stage.process.ahead import load_ahead, room_for
from runner.stage.process.device import Cuda
from runner.stage.process.load import PreparedPart, describe, load
from runner.transport.control import StageInfo

GB = 10**9
LAYERS = (2, 6)
SPEC = GroupSpec("d", "m", (RankPart((0, 2)), RankPart(LAYERS)), max_concurrent_requests=4)


@pytest.fixture(scope="module")
def part(small_llama: Path) -> PreparedPart:
    return PreparedPart(SPEC, "a commit", LAYERS, Checkpoint(small_llama), 1)


def stage(memory: int) -> StageSpec:
    return StageSpec("d", 1, memory_bytes=memory)


def held(part: PreparedPart, memory: int) -> StageInfo:
    return describe(stage(memory), part, load(stage(memory), part))


def test_room_is_what_no_request_can_fill_and_no_more_than_there_is(
    part: PreparedPart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "available_bytes", lambda: 100 * GB)
    info = held(part, 3 * GB)
    room = room_for(stage(3 * GB), SPEC, info)
    most = 4 * info.max_positions
    assert room == (info.kv_tokens - most) * info.kv_bytes_per_token
    shorter = dataclasses.replace(SPEC, max_model_len=10)
    longer = room_for(stage(3 * GB), shorter, info)
    assert longer == (info.kv_tokens - 40) * info.kv_bytes_per_token
    crowd = dataclasses.replace(SPEC, max_concurrent_requests=10**8)
    assert room_for(stage(3 * GB), crowd, info) == 0
    monkeypatch.setattr(device, "available_bytes", lambda: GB)
    assert room_for(stage(3 * GB), SPEC, info) == GB


def test_it_is_loaded_where_it_fits_with_what_loading_takes(
    part: PreparedPart, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = held(part, 3 * GB)
    layout = part.checkpoint.layout
    largest = max(layout.weights[name].nbytes * 2 for name in layout.own_weights(LAYERS))
    wanted = layout.weight_bytes(LAYERS, torch.float32) + largest + STEP_BYTES
    for room, fits in ((wanted - 1, False), (wanted, True)):
        monkeypatch.setattr(ahead, "room_for", lambda *_, room=room: room)
        found = load_ahead(stage(3 * GB), part, SPEC, info)
        assert (found is not None) == fits
    # Beside nothing there is room for whatever was let in.
    assert load_ahead(stage(3 * GB), part, None, None) is not None


def test_a_lack_of_memory_is_no_fault_of_the_model_and_others_are(
    part: PreparedPart, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> None:
        def raises(*_: object) -> None:
            raise error

        monkeypatch.setattr(ahead, "load", raises)

    fail(torch.OutOfMemoryError("CUDA out of memory"))
    assert load_ahead(stage(3 * GB), part, None, None) is None
    fail(RunnerError("the weights lack a layer"))
    with pytest.raises(RunnerError, match="lack a layer"):
        load_ahead(stage(3 * GB), part, None, None)


def test_who_computes_beside_never_sees_the_dtype_of_a_model_that_is_constructed(
    part: PreparedPart,
) -> None:
    checkpoint = part.checkpoint
    made = make_class(checkpoint.model_class, checkpoint.layout, LAYERS)
    contexts = made.get_init_context(torch.bfloat16, False, False, None)
    with ContextManagers(contexts):
        assert torch.get_default_dtype() == torch.bfloat16
        assert constructing.locked()
    assert torch.get_default_dtype() == torch.float32
    assert not constructing.locked()


def test_a_gpu_has_what_the_driver_says_and_what_torch_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _place: (20 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _place: 10 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _place: 7 * GB)
    assert Cuda(torch.device("cuda:1")).free_bytes() == 23 * GB
