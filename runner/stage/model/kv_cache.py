"""Keys and values of the requests that a stage serves: one contiguous slot per request and layer.

Head-major slots, so that attention over one request reads memory in order. Paging costs 1.0 to 1.4
times as much on a CPU, padding 2 to 25 times (docs/decisions).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from runner.errors import RunnerError


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


@dataclass(slots=True)
class Slot:
    """One request's memory: per layer index keys and values [KV heads, capacity, size]."""

    capacity: int
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]]


class KVCache:
    """Slots by request id."""

    def __init__(
        self, shapes: dict[int, LayerShape], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._shapes, self._dtype, self._device = shapes, dtype, device
        self._slots: dict[int, Slot] = {}

    @property
    def bytes_per_token(self) -> int:
        elements = sum(shape.elements_per_token for shape in self._shapes.values())
        return elements * self._dtype.itemsize

    def admit(self, request: int, capacity: int) -> None:
        """Reserve `capacity` positions; a slot that the request already has is dropped."""
        self._slots.pop(request, None)
        layers = {layer: self._layer(layer, capacity) for layer in self._shapes}
        self._slots[request] = Slot(capacity, layers)

    def admit_after(
        self, request: int, capacity: int, donor: int, reused: int, *, ends_donor: bool
    ) -> None:
        """The same, with the first `reused` positions as `donor` has them; raises RunnerError where
        it has not. Layers with a window keep all positions too, so that any beginning is whole.

        `ends_donor`: it is about to be released. Its memory goes over layer by layer, so that two
        slots are never held beside one another; as it is where it has the right size. Until its
        release all may be tried again.
        """
        self._slots.pop(request, None)
        given = self.slot(donor, reused)
        if ends_donor and given.capacity == capacity:
            self._slots[request] = given
            return
        layers = {}
        for layer in self._shapes:
            kept = given.layers[layer]
            layers[layer] = self._layer(layer, capacity)
            for source, target in zip(kept, layers[layer], strict=True):
                target[:, :reused] = source[:, :reused]
            if ends_donor:
                given.layers[layer] = layers[layer]
        self._slots[request] = Slot(capacity, layers)

    def _layer(self, layer: int, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = self._shapes[layer]
        return (
            self._reserve(shape.key_heads, capacity, shape.key_size),
            self._reserve(shape.value_heads, capacity, shape.value_size),
        )

    def _reserve(self, heads: int, capacity: int, size: int) -> torch.Tensor:
        # Not cleared: only what was written is read, and pages are taken when they are touched.
        return torch.empty(heads, capacity, size, dtype=self._dtype, device=self._device)

    def slot(self, request: int, end: int) -> Slot:
        """The request's slot; raises RunnerError if there is none or `end` lies beyond it."""
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
