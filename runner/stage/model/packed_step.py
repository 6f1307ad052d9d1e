"""What a stage's layers are given of a step, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch

from runner.stage.model.kv_pool import KVPool
from runner.stage.model.packed_batch import PackedBatch, SeenKeys, Span, within


@dataclass(frozen=True, slots=True)
class AttentionRule:
    """What a layer asks of attention beside being causal: how far back a row sees, itself included
    (None: all), the scores' factor (None: by the heads' size), what caps them, and by head a score
    [heads] that takes part in the softmax and has no value."""

    window: int | None = None
    scaling: float | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None


@dataclass(slots=True)
class PackedStep:
    """`slots` as in the batch, int64, `cu_q` and what is `seen` int32. What hangs on a window is
    made once per step and window, not per layer. `capability` is the CUDA device's, else None;
    `by_request` says that a layer's attention looked at the batch's spans, which no graph does.
    """

    pool: KVPool
    batch: PackedBatch
    slots: torch.Tensor
    cu_q: torch.Tensor
    seen: SeenKeys
    capability: tuple[int, int] | None = None
    by_request: bool = False
    _seen: dict[int, SeenKeys] = field(default_factory=dict)
    _masks: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def renew(self, batch: PackedBatch) -> None:
        """Another step in the same tensors."""
        self.batch = batch
        self._seen.clear()
        self._masks.clear()

    def seen_within(self, window: int | None) -> SeenKeys:
        if window is None:
            return self.seen
        if window not in self._seen:
            self._seen[window] = within(window, self.cu_q, self.seen, self.batch.max_q)
        return self._seen[window]

    def mask(self, span: Span, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Additive, [span.length, keys from span.begin(window) on]; 0 where seen, else -inf."""
        key = (span.first, window or 0)
        found = self._masks.get(key)
        if found is None:
            place = self.slots.device
            queries = torch.arange(span.start, span.end, device=place)[:, None]
            keys = torch.arange(span.begin(window), span.end, device=place)[None, :]
            hidden = keys > queries
            if window is not None:
                hidden |= keys <= queries - window
            found = torch.zeros(hidden.shape, dtype=dtype, device=place)
            self._masks[key] = found.masked_fill_(hidden, float("-inf"))
        return found


class DeviceNumbers:
    """Lists of numbers on a device in one copy, since a GPU's host waits for each: by list int64
    in `long` and int32 in `int`."""

    def __init__(self, device: torch.device, parts: Sequence[Sequence[int]]) -> None:
        self._long = _joined(parts).to(device)
        self._int = self._long.int()
        lengths = [len(part) for part in parts]
        self.long = torch.split(self._long, lengths)
        self.int = torch.split(self._int, lengths)

    def fill(self, parts: Sequence[Sequence[int]]) -> None:
        """Lists of the same lengths into the same memory."""
        self._long.copy_(_joined(parts))
        self._int.copy_(self._long)


def _joined(parts: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor([*chain(*parts)], dtype=torch.long)


class StepInputs:
    """A step's numbers and what stands for them in the layers: `ids` on the first stage, [0] on
    others, which have `hidden` [tokens, hidden size] instead; `sampled` rows."""

    def __init__(
        self,
        pool: KVPool,
        batch: PackedBatch,
        ids: Sequence[int],
        sampled: Sequence[int],
        hidden: torch.Tensor | None,
        capability: tuple[int, int] | None,
    ) -> None:
        self.hidden = hidden
        self._numbers = DeviceNumbers(pool.device, _parts(batch, ids, sampled))
        self.positions, slots, self.ids, self.sampled, *_ = self._numbers.long
        *_, cu_q, starts, used = self._numbers.int
        seen = SeenKeys(starts, used, batch.max_k)
        self.packed = PackedStep(pool, batch, slots, cu_q, seen, capability)

    def fill(
        self,
        batch: PackedBatch,
        ids: Sequence[int],
        sampled: Sequence[int],
        hidden: torch.Tensor | None,
    ) -> None:
        """Another step of as many rows and requests into the same memory; `hidden` may have fewer
        rows."""
        self._numbers.fill(_parts(batch, ids, sampled))
        self.packed.renew(batch)
        if self.hidden is not None and hidden is not None:
            self.hidden[: len(hidden)].copy_(hidden)


def _parts(
    batch: PackedBatch, ids: Sequence[int], sampled: Sequence[int]
) -> tuple[Sequence[int], ...]:
    return (batch.positions, batch.slots, ids, sampled, batch.cu_q, batch.starts, batch.used)
