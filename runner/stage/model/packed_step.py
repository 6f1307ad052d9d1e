"""A packed batch on the device, as a layer's attention finds it."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    made once per step and window, not per layer. `capability` is the CUDA device's, else None."""

    pool: KVPool
    batch: PackedBatch
    slots: torch.Tensor
    cu_q: torch.Tensor
    seen: SeenKeys
    capability: tuple[int, int] | None = None
    _seen: dict[int, SeenKeys] = field(default_factory=dict)
    _masks: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

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
