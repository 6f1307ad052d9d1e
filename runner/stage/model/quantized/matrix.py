"""Numbers times scales: what every scheme of matrices comes down to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from contract.quantization.scheme import BadQuantization

_AT_ONCE = 2**22  # numbers: what lies beside the result


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight [rows, columns] = (numbers - zeros) * scale.

    `numbers(first, end)` are those of some rows. `scale` and `zeros` are [row groups, column
    groups]; `row_group` and `column_group` say which one each row and column has: of as many groups
    as there are columns the one at its place.
    """

    numbers: Callable[[int, int], torch.Tensor]
    scale: torch.Tensor
    row_group: torch.Tensor
    column_group: torch.Tensor
    zeros: torch.Tensor | None = None

    def dequantized(self, dtype: torch.dtype, *, transposed: bool = False) -> torch.Tensor:
        """Computed in float32 and rounded once; some rows at a time, so that little lies beside
        the result. `transposed`: [columns, rows]."""
        rows, columns = len(self.row_group), len(self.column_group)
        shape = (columns, rows) if transposed else (rows, columns)
        result = torch.empty(shape, dtype=dtype)
        by_row = result.T if transposed else result
        step = max(1, _AT_ONCE // max(1, columns))
        for first in range(0, rows, step):
            end = min(rows, first + step)
            part = self.numbers(first, end).to(torch.float32)
            if self.zeros is not None:
                part = part - self._spread(self.zeros, first, end)
            by_row[first:end] = part * self._spread(self.scale, first, end)
        return result

    def _spread(self, groups: torch.Tensor, first: int, end: int) -> torch.Tensor:
        rows = groups.index_select(0, self.row_group[first:end]).to(torch.float32)
        if rows.shape[1] in (1, len(self.column_group)):
            return rows  # one for all, or one for each
        return rows.index_select(1, self.column_group)


def in_blocks(count: int, size: int) -> torch.Tensor:
    """The group of each row or column where neighbours share one."""
    return torch.arange(count) // size


def in_groups(order: torch.Tensor | None, count: int, size: int) -> torch.Tensor:
    """The same where `order` may say it for each; -1 throughout says nothing.

    Raises BadQuantization.
    """
    groups = -(-count // size)
    if order is None or (order.numel() and bool((order == -1).all())):
        return in_blocks(count, size)
    if order.shape != (count,) or bool((order < 0).any()) or bool((order >= groups).any()):
        raise BadQuantization(f"has a g_idx that is not of {count} groups from 0 to {groups - 1}")
    return order.long()
