"""A step as numbers."""

from __future__ import annotations

import random

import torch

from runner.stage.model.packed_batch import PackedBatch, SeenKeys, Span, pack, within

# A prompt's chunk, a row, a whole prompt.
SPANS = (Span(0, 3, 4, 100), Span(3, 1, 9, 20), Span(4, 2, 0, 50))


def test_spans_as_numbers() -> None:
    assert pack(SPANS) == PackedBatch(
        spans=SPANS,
        positions=[4, 5, 6, 9, 0, 1],
        slots=[104, 105, 106, 29, 50, 51],
        cu_q=[0, 3, 4, 6],
        starts=[100, 20, 50, 0],
        used=[7, 10, 2],
        max_q=3,
        max_k=10,
    )
    nothing = pack(())
    assert (nothing.rows, nothing.cu_q, nothing.starts, nothing.max_q) == (0, [0], [0], 0)


def test_rows_that_pad_see_themselves_only() -> None:
    batch = pack((Span(0, 1, 9, 20), Span(1, 1, 0, 50)))
    padded = batch.padded(4, 16, scratch=200)
    assert padded.positions == [9, 0, 0, 0]
    assert padded.slots == [29, 50, 200, 200]
    assert padded.cu_q == [0, 1, 2, 3, 4]
    assert padded.starts == [20, 50, 200, 200, 0]
    assert padded.used == [10, 1, 1, 1]
    assert (padded.max_q, padded.max_k, padded.rows) == (1, 16, 4)


def test_a_window_shifts_where_keys_begin() -> None:
    """No key that any row sees is lost, and one row needs no window any more."""
    choice = random.Random(2)
    for _ in range(300):
        spans, first = [], 0
        for _ in range(choice.randint(1, 5)):
            length = choice.randint(1, 9)
            spans.append(Span(first, length, choice.randint(0, 30), choice.randint(0, 99)))
            first += length
        batch, window = pack(spans), choice.randint(1, 20)
        cu_q, starts, used = (
            torch.tensor(part, dtype=torch.int32) for part in (batch.cu_q, batch.starts, batch.used)
        )
        seen = within(window, cu_q, SeenKeys(starts, used, batch.max_k), batch.max_q)
        for index, span in enumerate(spans):
            begin = span.begin(window)
            assert seen.starts[index] == span.place + begin
            assert seen.used[index] == span.end - begin <= seen.max_k
            if span.length == 1:
                assert seen.used[index] == min(span.end, window)
        assert seen.starts.dtype == seen.used.dtype == torch.int32
        assert starts.tolist() == batch.starts, "what was given stays"
