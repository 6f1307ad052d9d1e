"""Keys and values of the requests that a stage serves: one memory, cut into contiguous slots.

Head-major, so that attention over one request reads each head's keys in order; on CPUs token-major
costs up to a quarter more (docs/decisions). A flash kernel takes either by its strides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from runner.errors import RunnerError
from runner.stage.cpu.allocator import give_back

MOVED_AT_ONCE = 2**20  # elements that a moved slot needs beside it


@dataclass(frozen=True, slots=True)
class LayerShape:
    """KV heads and sizes of one layer (key and value sizes differ with latent attention)."""

    key_heads: int
    key_size: int
    value_heads: int
    value_size: int

    @property
    def elements_per_token(self) -> int:
        return self.key_heads * self.key_size + self.value_heads * self.value_size


@dataclass(slots=True, eq=False)
class Slot:
    """The pool's positions `start` .. `start + capacity - 1`, of which the first `written` hold
    something."""

    start: int
    capacity: int
    written: int = 0

    @property
    def end(self) -> int:
        return self.start + self.capacity


class KVPool:
    """`layers` has keys and values [KV heads, positions + 1, size] by layer index.

    Slots of `positions` positions in all fit, in whatever order they come and go: where no gap is
    large enough, slots are moved. One more position, `scratch`, is nobody's: rows that pad a step
    are written there. More than `reserve` has asked for is taken when it is admitted: an edit may
    raise a group's limits while it serves.

    Whatever runs out of memory has changed nothing that is held, and may be tried again.
    """

    def __init__(
        self, shapes: dict[int, LayerShape], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._shapes, self._dtype, self.device = shapes, dtype, device
        self._slots: dict[int, Slot] = {}
        self.positions = 0
        self.generation = 0  # of the memory: another number, another place
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def bytes_per_token(self) -> int:
        elements = sum(shape.elements_per_token for shape in self._shapes.values())
        return elements * self._dtype.itemsize

    @property
    def scratch(self) -> int:
        return self.positions

    def reserve(self, positions: int) -> None:
        """Have so many, and nothing in them."""
        self._slots.clear()
        self.layers.clear()
        self.positions = 0
        self._grow(positions)

    def admit(self, request: int, capacity: int) -> None:
        """Reserve `capacity` positions; a slot that the request already has is dropped."""
        self._slots.pop(request, None)
        self._slots[request] = self._new(capacity)

    def admit_after(
        self, request: int, capacity: int, donor: int, reused: int, *, ends_donor: bool
    ) -> None:
        """The same, with the first `reused` positions as `donor` has them; raises RunnerError where
        it has not. Layers with a window keep all positions too, so that any beginning is whole.

        `ends_donor`: it is about to be released, and its slot goes over to the request. Until the
        release both have it, so that all may be tried again.
        """
        self._slots.pop(request, None)
        given = self.slot(donor, reused)
        if ends_donor:
            given.written = reused
            self._resize(given, capacity)
            self._slots[request] = given
            return
        slot = self._new(capacity)
        for tensor in self._tensors():
            source = tensor[:, given.start : given.start + reused]
            tensor[:, slot.start : slot.start + reused].copy_(source)
        slot.written = reused
        self._slots[request] = slot

    def slot(self, request: int, end: int) -> Slot:
        """The request's slot, for positions before `end`; raises RunnerError if there is none or
        `end` lies beyond it. It is where it is until the next admission."""
        slot = self._slots.get(request)
        if slot is None:
            raise RunnerError(f"request {request}: has no KV slot; admit it first")
        if end > slot.capacity:
            raise RunnerError(f"request {request}: position {end} is beyond {slot.capacity}")
        return slot

    def release(self, request: int) -> None:
        """Unknown ids are ignored."""
        self._slots.pop(request, None)

    def clear(self) -> None:
        self._slots.clear()
        self.give_back()

    def give_back(self) -> None:
        """On a CPU return the pages that hold nothing; the next to write there maps them again."""
        if self.device.type != "cpu":
            return
        unwritten = list(self._unwritten())
        for tensor in self._tensors():
            for head in tensor:
                for first, end in unwritten:
                    give_back(head[first:end])

    def _tensors(self) -> Iterator[torch.Tensor]:
        for pair in self.layers.values():
            yield from pair

    def _in_order(self) -> list[Slot]:
        """By start; one that two requests have for a moment is there once."""
        return sorted(set(self._slots.values()), key=lambda slot: slot.start)

    def _unwritten(self) -> Iterator[tuple[int, int]]:
        first = 0
        for slot in self._in_order():
            yield first, slot.start
            first = slot.start + slot.written
        yield first, self.positions

    def _new(self, capacity: int) -> Slot:
        start = self._gap(capacity)
        if start is None:
            self._have_room_for(capacity)
            self._gather(None)
            start = self.positions - self._free()
        return Slot(start, capacity)

    def _gap(self, capacity: int) -> int | None:
        """The first that is large enough."""
        first = 0
        for slot in self._in_order():
            if slot.start - first >= capacity:
                return first
            first = slot.end
        return first if self.positions - first >= capacity else None

    def _free(self) -> int:
        return self.positions - sum(slot.capacity for slot in self._in_order())

    def _have_room_for(self, capacity: int) -> None:
        if (missing := capacity - self._free()) > 0:
            self._grow(self.positions + missing)

    def _resize(self, slot: Slot, capacity: int) -> None:
        """Where it is, where there is a gap, or where all gaps are put together behind it."""
        slots = self._in_order()
        place = slots.index(slot)
        behind = slots[place + 1].start if place + 1 < len(slots) else self.positions
        if slot.start + capacity > behind:
            gap = self._gap(capacity)
            if gap is None:
                self._have_room_for(capacity - slot.capacity)
                self._gather(slot)
            else:
                self._move(slot, gap, self._spare())
        slot.capacity = capacity

    def _gather(self, last: Slot | None) -> None:
        """Put all that is free behind the slot `last`; None: behind all of them."""
        slots, spare = self._in_order(), self._spare()
        place = len(slots) if last is None else slots.index(last) + 1
        left, right = 0, self.positions
        for slot in slots[:place]:
            self._move(slot, left, spare)
            left = slot.end
        for slot in reversed(slots[place:]):
            self._move(slot, right - slot.capacity, spare)
            right = slot.start

    def _spare(self) -> torch.Tensor:
        """Taken before anything is moved: a slot is never left with some of its layers moved."""
        return torch.empty(MOVED_AT_ONCE, dtype=self._dtype, device=self.device)

    def _move(self, slot: Slot, start: int, spare: torch.Tensor) -> None:
        distance = start - slot.start
        if distance == 0:
            return
        for tensor in self._tensors():
            heads, _, size = tensor.shape
            length = max(1, len(spare) // (heads * size))
            firsts = range(slot.start, slot.start + slot.written, length)
            for first in firsts if distance < 0 else reversed(firsts):
                part = tensor[:, first : min(first + length, slot.start + slot.written)]
                target = tensor[:, first + distance : first + distance + part.shape[1]]
                if abs(distance) < part.shape[1]:  # they overlap
                    part = spare[: part.numel()].view(part.shape).copy_(part)
                target.copy_(part)
        slot.start = start

    def _grow(self, positions: int) -> None:
        """Layer by layer, so that no two pools are held beside one another."""
        self.generation += 1
        for layer, shape in self._shapes.items():
            sizes = ((shape.key_heads, shape.key_size), (shape.value_heads, shape.value_size))
            # Not cleared: only what was written is read, and a CPU's pages are taken when touched.
            larger = [
                torch.empty(heads, positions + 1, size, dtype=self._dtype, device=self.device)
                for heads, size in sizes
            ]
            for source, target in zip(self.layers.get(layer, ()), larger, strict=False):
                for slot in self._in_order():
                    part = slice(slot.start, slot.start + slot.written)
                    target[:, part].copy_(source[:, part])
            self.layers[layer] = (larger[0], larger[1])
        self.positions = positions
