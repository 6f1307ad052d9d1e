"""A packed batch on the device, as a layer's attention finds it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from runner.stage.model.kv_pool import KVPool
from runner.stage.model.packed_batch import PackedBatch, Span


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
    """`slots` as in the batch, int64. Masks are made once per step and window, not per layer."""

    pool: KVPool
    batch: PackedBatch
    slots: torch.Tensor
    _masks: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

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
