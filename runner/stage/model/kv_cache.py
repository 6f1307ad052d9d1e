"""Keys and values of the requests that a stage serves: one contiguous slot per request and layer,
and how many positions there is room for.

Head-major slots, so that attention over one request reads memory in order. Paging costs 1.0 to 1.4
times as much on a CPU, padding 2 to 25 times (docs/decisions).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from contract.specs import GroupSpec, RankSpec
from runner.errors import RunnerError

RESERVED_BYTES = 1_000_000_000  # the interpreter, torch, activations
CUDA_SHARE = 0.9  # of what is free once the weights are loaded
HOST_SHARE = 0.5  # of what is available when no limit is declared
_MEMINFO = Path("/proc/meminfo")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


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
        layers = {
            layer: (
                self._reserve(shape.key_heads, capacity, shape.key_size),
                self._reserve(shape.value_heads, capacity, shape.value_size),
            )
            for layer, shape in self._shapes.items()
        }
        self._slots[request] = Slot(capacity, layers)

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


def kv_tokens(
    spec: GroupSpec, rank: RankSpec, *, weight_bytes: int, kv_bytes_per_token: int
) -> int:
    """Positions in all, over every request; raises RunnerError where the weights leave no room.

    CPU with a declared memory: that less the weights less 1 GB. CPU without: half of what is
    available now, shared by the ranks of the same node. CUDA: 9/10 of what is free.
    """
    if torch.device(rank.device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(torch.device(rank.device))
        room = int(free * CUDA_SHARE)
    elif rank.memory_bytes is not None:
        room = rank.memory_bytes - weight_bytes - RESERVED_BYTES
    else:
        sharing = sum(other.node == rank.node for other in spec.ranks)
        room = int(_available_bytes() * HOST_SHARE) // sharing
    tokens = room // max(1, kv_bytes_per_token)
    if tokens < 1:
        raise RunnerError(
            f"rank {rank.rank}: its weights of {weight_bytes} bytes leave no memory for a KV cache:"
            " give it more memory or fewer layers"
        )
    return tokens


def _available_bytes() -> int:
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
            break
    else:
        available = RESERVED_BYTES
    try:
        return min(available, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no cgroup, or "max"
        return available
