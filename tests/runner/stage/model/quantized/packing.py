"""Whole numbers of few bits in words of 32, written from the formats' definitions."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def packed(numbers: torch.Tensor, bits: int, order: Sequence[int] | None = None) -> torch.Tensor:
    """[rows, columns], none below 0 -> int32 [rows, words]; the number at `order[place]` of each
    word's own lies at that place, the first in the lowest bits."""
    in_word = 32 // bits
    rows, columns = numbers.shape
    words = torch.zeros(rows, -(-columns // in_word), dtype=torch.int64)
    for word in range(words.shape[1]):
        for place, position in enumerate(order or range(in_word)):
            column = word * in_word + position
            if column < columns:
                words[:, word] |= numbers[:, column].long() << (bits * place)
    return torch.where(words >= 2**31, words - 2**32, words).int()
