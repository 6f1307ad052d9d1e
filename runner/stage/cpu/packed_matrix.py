"""One matrix as oneDNN wants it on this CPU.

torch's two operators for this are private (they serve torch.compile), so everything here is
guarded: where they are missing, `supported` says no and the plain modules stay.
"""

from __future__ import annotations

import os
from enum import Enum
from functools import cache

import torch
from torch import nn

from runner.stage.cpu.allocator import give_back

SWITCH = "SPLITSTACK_PACKED_WEIGHTS"
# An upcast copy of a low-precision matrix is made in blocks of this many elements (16 MiB).
UPCAST_BLOCK_ELEMENTS = 4 * 2**20
# A matrix that may be consumed is packed in blocks of this size, each block's pages given back
# before the next: a head of gigabytes would double otherwise.
CONSUMED_BLOCK_BYTES = 64 * 2**20
# More rows than this never change how a row is summed: what fewer rows are compared with.
PROBE_ROWS = 8


class Layout(Enum):
    PACKED = "packed"  # reordered once for oneDNN: fastest from one row to about 64
    DENSE = "dense"  # the module's own matrix, which somebody else reads too
    UPCAST = "upcast"  # 16 bits kept, 32 bits computed: the CPU cannot multiply this dtype fast


def supported() -> bool:
    """This torch has the operators, oneDNN, and nobody switched packing off."""
    return (
        os.environ.get(SWITCH, "1") != "0"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class PackedMatrix:
    """A matrix [out, in] for `rows @ matrix.T + bias` on CPU; bytes as given, plus no copy.

    A row's result is bit-equal however many rows are computed with it. Where oneDNN sums a lone
    row in another order (a probe at packing finds out), it gets zero rows for company.
    `shared`: others read `dense` too, it stays where it lies. `consumed`: nobody reads `dense`
    afterwards, and its memory is given back while a large one is packed (`tensor` is then on the
    meta device).
    """

    def __init__(
        self, dense: torch.Tensor, *, shared: bool = False, consumed: bool = False
    ) -> None:
        dense = dense.detach()
        self.layout = _choose_layout(dense.dtype, shared)
        self.tensor = dense
        self._blocks: tuple[torch.Tensor, ...] = (dense,)
        if self.layout is Layout.PACKED:
            self._blocks = _reorder(dense, consumed)
            whole = len(self._blocks) == 1
            self.tensor = self._blocks[0] if whole else dense.to("meta")
        self._minimum_rows = 1
        self._minimum_rows = self._probe(dense.shape[1])

    @property
    def bytes_packed(self) -> int:
        """Bytes that this object holds beside what the model held anyway."""
        if self.layout is not Layout.PACKED:
            return 0
        return sum(block.numel() * block.element_size() for block in self._blocks)

    def apply(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """[..., in] -> [..., out], in the dtype of `rows`."""
        flat = rows.reshape(-1, rows.shape[-1])
        count = flat.shape[0]
        if count < self._minimum_rows:
            flat = nn.functional.pad(flat, (0, 0, 0, self._minimum_rows - count))
        if self.layout is Layout.UPCAST:
            result = self._upcast(flat, bias)
        else:
            result = self._multiply_blocks(flat, bias)
        return result[:count].view(*rows.shape[:-1], result.shape[-1])

    def _multiply_blocks(self, flat: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if len(self._blocks) == 1:
            return _multiply(flat, self._blocks[0], bias)
        parts = [_multiply(flat, block, None) for block in self._blocks]
        result = torch.cat(parts, dim=-1)
        return result if bias is None else result.add_(bias)

    def _upcast(self, flat: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        wide = flat.float()
        height = max(1, UPCAST_BLOCK_ELEMENTS // self.tensor.shape[1])
        blocks = [
            _multiply(wide, block.float(), None) for block in torch.split(self.tensor, height)
        ]
        result = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=-1)
        return (result if bias is None else result + bias.float()).to(flat.dtype)

    def _probe(self, width: int) -> int:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(PROBE_ROWS, width, generator=generator)
        if self.layout is not Layout.UPCAST:  # rounding to 16 bits would hide a difference
            rows = rows.to(self.tensor.dtype)
        together = self.apply(rows, None)
        for count in (1, 2):
            if torch.equal(self.apply(rows[:count], None), together[:count]):
                return count
        return 4


def _choose_layout(dtype: torch.dtype, shared: bool) -> Layout:
    if not _multiplies(dtype):
        return Layout.UPCAST
    return Layout.DENSE if shared else Layout.PACKED


def _reorder(dense: torch.Tensor, consumed: bool) -> tuple[torch.Tensor, ...]:
    reorder = torch.ops.mkldnn._reorder_linear_weight
    if not consumed or not dense.is_contiguous() or dense.nbytes <= CONSUMED_BLOCK_BYTES:
        return (reorder(dense.contiguous()),)
    height = max(1, CONSUMED_BLOCK_BYTES // dense[0].nbytes)
    blocks = []
    for rows in torch.split(dense, height):
        blocks.append(reorder(rows))
        give_back(rows)
    return tuple(blocks)


@cache
def _multiplies(dtype: torch.dtype) -> bool:
    """oneDNN has instructions for this dtype on this CPU; without them it raises."""
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype))
    except RuntimeError:
        return False
    return True


def _multiply(rows: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, matrix, bias, "none", [], "")
    return result
