"""Slots of one pool: what was written in one is in it, wherever it is moved."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from runner.errors import RunnerError
from runner.stage.model import kv_pool
from runner.stage.model.kv_pool import KVPool, LayerShape

SHAPES = {3: LayerShape(2, 8, 2, 8), 4: LayerShape(1, 16, 2, 4)}


def tensors(pool: KVPool) -> Iterator[torch.Tensor]:
    for pair in pool.layers.values():
        yield from pair


def write(pool: KVPool, request: int, first: int, end: int) -> None:
    """What no other request has there."""
    slot = pool.slot(request, end)
    slot.written = max(slot.written, end)
    for tensor in tensors(pool):
        for position in range(first, end):
            tensor[:, slot.start + position] = 1000 * request + position


def check(pool: KVPool, request: int, writers: list[int]) -> None:
    """`writers[i]` wrote position i."""
    start = pool.slot(request, len(writers)).start
    expected = torch.tensor([1000.0 * who + place for place, who in enumerate(writers)])
    for tensor in tensors(pool):
        found = tensor[:, start : start + len(writers)]
        assert torch.equal(found, expected[None, :, None].expand_as(found))


def pool_of(positions: int) -> KVPool:
    pool = KVPool(SHAPES, torch.float32, torch.device("cpu"))
    pool.reserve(positions)
    return pool


@pytest.mark.parametrize("capacity", [12, 20, 33])
@pytest.mark.parametrize("ends_donor", [True, False])
@pytest.mark.parametrize("positions", [100, 53, 0], ids=["roomy", "tight", "to grow"])
def test_a_beginning_is_copied_or_taken_over(
    capacity: int, ends_donor: bool, positions: int
) -> None:
    pool = pool_of(positions)
    pool.admit(1, 20)
    write(pool, 1, 0, 20)
    pool.admit_after(2, capacity, 1, 11, ends_donor=ends_donor)
    if ends_donor:
        pool.admit_after(2, capacity, 1, 11, ends_donor=True)  # its step is tried again
        pool.release(1)
        with pytest.raises(RunnerError, match="request 1: has no KV slot"):
            pool.slot(1, 1)
    else:
        write(pool, 2, 11, capacity)
        check(pool, 1, [1] * 20)
    check(pool, 2, [1] * 11)
    assert pool.slot(2, capacity).capacity == capacity


def test_all_that_is_counted_fits_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random admissions up to the last position, without one more."""
    monkeypatch.setattr(kv_pool, "MOVED_AT_ONCE", 64)  # so that moves overlap, and take many
    choice = random.Random(5)
    pool, total = pool_of(200), 200
    held: dict[int, tuple[int, list[int]]] = {}
    for number in range(1, 1500):
        free = total - sum(capacity for capacity, _ in held.values())
        for other in choice.sample(sorted(held), len(held) // 3):
            pool.release(other)
            free += held.pop(other)[0]
        donor = choice.choice([0, *held])
        writers: list[int] = []
        if donor and held[donor][1]:
            taken, known = held[donor]
            ends, reused = choice.random() < 0.7, choice.randint(1, len(known))
            room = free + taken if ends else free
            if room < reused:
                continue
            capacity = room if choice.random() < 0.3 else choice.randint(reused, room)
            pool.admit_after(number, capacity, donor, reused, ends_donor=ends)
            writers = known[:reused]
            if ends:
                pool.release(donor)
                del held[donor]
        elif free:
            capacity = choice.randint(1, free)
            pool.admit(number, capacity)
        else:
            continue
        length = choice.randint(len(writers), capacity)
        write(pool, number, len(writers), length)
        held[number] = (capacity, writers + [number] * (length - len(writers)))
        for request, (_, known) in held.items():
            check(pool, request, known)
    assert pool.positions == total


@pytest.mark.parametrize("takes_over", [False, True])
def test_nothing_is_half_moved_without_memory(
    takes_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, empty = pool_of(40), torch.empty
    for request in (1, 2, 3):
        pool.admit(request, 10)
        write(pool, request, 0, 10)
    pool.release(2)

    def none(*_: object, **__: object) -> None:
        raise MemoryError

    def admit() -> None:
        if takes_over:
            pool.admit_after(4, 22, 3, 10, ends_donor=True)
        else:
            pool.admit(4, 15)

    monkeypatch.setattr(torch, "empty", none)
    with pytest.raises(MemoryError):
        admit()
    for request in (1, 3):
        check(pool, request, [request] * 10)
    monkeypatch.setattr(torch, "empty", empty)
    admit()
    for request in (1, 3):
        check(pool, request, [request] * 10)
    assert pool.positions == 40


def test_a_pool_that_cannot_grow_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, empty, calls = pool_of(20), torch.empty, 0
    pool.admit(1, 20)
    write(pool, 1, 0, 20)

    def second_fails(*sizes: int, **kinds: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:  # of the second layer
            raise MemoryError
        return empty(*sizes, **kinds)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(torch, "empty", second_fails)
    with pytest.raises(MemoryError):
        pool.admit(2, 10)
    check(pool, 1, [1] * 20)
    pool.admit(2, 10)
    write(pool, 2, 0, 10)
    check(pool, 1, [1] * 20)
    assert pool.positions == 30


def test_a_donor_that_has_no_slot_is_told() -> None:
    pool = pool_of(20)
    pool.admit(1, 20)
    for donor, reused, why in ((7, 5, "has no KV slot"), (1, 21, "position 21 is beyond 20")):
        with pytest.raises(RunnerError, match=f"request {donor}: {why}"):
            pool.admit_after(2, 40, donor, reused, ends_donor=False)


def test_pages_that_hold_nothing_go_back() -> None:
    """And those that hold something stay as they are."""
    pool = KVPool({0: LayerShape(2, 512, 2, 512)}, torch.float32, torch.device("cpu"))
    pool.reserve(20_000)
    for request, capacity in ((1, 4_000), (2, 12_000), (3, 4_000)):
        pool.admit(request, capacity)
        write(pool, request, 0, capacity // 4)
        for tensor in tensors(pool):
            tensor[:, pool.slot(request, 1).start :][:, :capacity].clamp_(min=0)  # touched
    full = resident_bytes()
    pool.release(2)
    pool.give_back()
    assert resident_bytes() < full - 12_000 * pool.bytes_per_token * 0.9
    for request in (1, 3):
        check(pool, request, [request] * 1_000)
    pool.clear()
    assert resident_bytes() < full - 20_000 * pool.bytes_per_token * 0.9


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
