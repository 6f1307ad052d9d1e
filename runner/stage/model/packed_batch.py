"""A step's rows as numbers: where in the pool each is stored, and which keys each request sees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch


@dataclass(frozen=True, slots=True)
class Span:
    """One request's rows `first` .. `first + length - 1` of a step, from position `start` on. Its
    position 0 is at `place` of the pool."""

    first: int
    length: int
    start: int
    place: int

    @property
    def end(self) -> int:
        """One past its last position: how many keys its last row sees."""
        return self.start + self.length

    def begin(self, window: int | None) -> int:
        """The first position that any of its rows sees."""
        return 0 if window is None else max(0, self.start + 1 - window)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Of `n` requests and all their rows: by row `positions` in the text and `slots` in the pool;
    by request rows `cu_q[i]` .. `cu_q[i + 1] - 1` [n + 1], which see `used[i]` keys [n] from
    `starts[i]` of the pool on [n + 1, the last is of no request]. The last row of a request sees
    all of them, each one before it one fewer.

    `max_q` is the most rows of one request, `max_k` no less than the most keys.
    """

    spans: tuple[Span, ...]
    positions: Sequence[int]
    slots: Sequence[int]
    cu_q: Sequence[int]
    starts: Sequence[int]
    used: Sequence[int]
    max_q: int
    max_k: int

    @property
    def rows(self) -> int:
        return len(self.positions)

    def padded(self, rows: int, max_k: int, scratch: int) -> PackedBatch:
        """With further requests of one row each that see themselves only, at `scratch`."""
        padding = (Span(first, 1, 0, scratch) for first in range(self.rows, rows))
        more = pack((*self.spans, *padding))
        assert more.max_k <= max_k, f"{more.max_k} keys, which are more than {max_k}"
        return replace(more, max_k=max_k)


def pack(spans: Iterable[Span]) -> PackedBatch:
    """Of spans whose rows follow one another."""
    spans = tuple(spans)
    positions: list[int] = []
    slots: list[int] = []
    cu_q = [0]
    for span in spans:
        assert span.first == cu_q[-1], "rows that are no request's"
        positions.extend(range(span.start, span.end))
        slots.extend(range(span.place + span.start, span.place + span.end))
        cu_q.append(span.first + span.length)
    used = [span.end for span in spans]
    return PackedBatch(
        spans,
        positions,
        slots,
        cu_q,
        [*(span.place for span in spans), 0],
        used,
        max((span.length for span in spans), default=0),
        max(used, default=0),
    )


class SeenKeys(NamedTuple):
    """`starts` and `used` of a PackedBatch as int32 tensors, with their `max_k`."""

    starts: torch.Tensor
    used: torch.Tensor
    max_k: int


def within(window: int, cu_q: torch.Tensor, seen: SeenKeys, max_q: int) -> SeenKeys:
    """Without the keys that lie `window` or more before the first row of a request: one row needs
    no window any more, later ones of several still do."""
    starts, used, max_k = seen
    first_rows = used - (cu_q[1:] - cu_q[:-1])
    hidden = (first_rows + 1 - window).clamp(min=0)
    shifted = starts.clone()
    shifted[:-1] += hidden
    return SeenKeys(shifted, used - hidden, min(max_k, window + max_q - 1))
