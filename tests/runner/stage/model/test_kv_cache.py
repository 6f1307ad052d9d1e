"""Slots that begin with what another one has, bit for bit."""

from __future__ import annotations

import pytest
import torch

from runner.errors import RunnerError
from runner.stage.model.kv_cache import KVCache, LayerShape, Slot

SHAPES = {3: LayerShape(2, 8, 2, 8), 4: LayerShape(1, 16, 2, 4)}


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def cache(request: pytest.FixtureRequest) -> KVCache:
    cache = KVCache(SHAPES, request.param, torch.device("cpu"))
    cache.admit(1, 20)
    for pair in cache.slot(1, 20).layers.values():
        for tensor in pair:
            tensor.copy_(torch.randn(tensor.shape))
    return cache


def beginning(slot: Slot, length: int) -> list[torch.Tensor]:
    return [tensor[:, :length].clone() for pair in slot.layers.values() for tensor in pair]


def check(cache: KVCache, request: int, expected: list[torch.Tensor], length: int) -> None:
    found = beginning(cache.slot(request, length), length)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("capacity", [12, 20, 33])
@pytest.mark.parametrize("ends_donor", [True, False])
def test_a_beginning_is_copied_or_taken_over(
    cache: KVCache, capacity: int, ends_donor: bool
) -> None:
    expected = beginning(cache.slot(1, 20), 11)
    cache.admit_after(2, capacity, 1, 11, ends_donor=ends_donor)
    if ends_donor:
        cache.release(1)
    check(cache, 2, expected, 11)
    assert cache.slot(2, capacity).capacity == capacity
    if ends_donor:
        with pytest.raises(RunnerError, match="request 1: has no KV slot"):
            cache.slot(1, 1)
    else:
        for tensor in cache.slot(2, capacity).layers[3]:
            tensor.zero_()
        check(cache, 1, expected, 11)


def test_two_slots_that_end_and_begin_are_never_held_beside_one_another(
    cache: KVCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory in between all is as it was, and it may be tried again."""
    expected = beginning(cache.slot(1, 20), 11)
    reserve, most, largest = cache._reserve, 0, 0

    def held() -> int:
        tensors = {
            id(tensor): tensor.numel()
            for slot in cache._slots.values()
            for pair in slot.layers.values()
            for tensor in pair
        }
        return sum(tensors.values())

    def watched(heads: int, capacity: int, size: int) -> torch.Tensor:
        nonlocal most, largest
        found = reserve(heads, capacity, size)
        most, largest = max(most, held() + found.numel()), max(largest, found.numel())
        if size == fail_at:
            raise MemoryError
        return found

    monkeypatch.setattr(cache, "_reserve", watched)
    fail_at = 4
    with pytest.raises(MemoryError):
        cache.admit_after(2, 33, 1, 11, ends_donor=True)
    check(cache, 1, expected, 11)
    fail_at = 0
    cache.admit_after(2, 33, 1, 11, ends_donor=True)
    cache.release(1)
    check(cache, 2, expected, 11)
    assert most <= held() + 2 * largest


def test_a_donor_that_has_no_slot_is_told(cache: KVCache) -> None:
    for donor, reused, why in ((7, 5, "has no KV slot"), (1, 21, "position 21 is beyond 20")):
        with pytest.raises(RunnerError, match=f"request {donor}: {why}"):
            cache.admit_after(2, 40, donor, reused, ends_donor=False)
