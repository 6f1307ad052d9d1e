"""fp8 and int8 with scales -> a weight."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from contract.quantization.scaled import Scaled
from contract.quantization.scheme import ORDER, SCALE, VALUES, ZEROS
from runner.stage.model.quantized.matrix import Matrix, in_blocks, in_groups


def dequantize_scaled(
    scheme: Scaled, parts: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    """[rows, columns] of `dtype`."""
    values, scale = parts[VALUES], parts[SCALE]
    rows, columns = values.shape
    # One for each row, or one for all, has the shape of a column.
    block = scheme.block or (1 if scale.numel() == rows else rows, columns)
    groups = -(-columns // block[1])
    zeros = parts.get(ZEROS)
    return Matrix(
        lambda first, end: values[first:end],
        scale.reshape(-1, groups),
        in_blocks(rows, block[0]),
        in_groups(parts.get(ORDER), columns, block[1]),
        None if zeros is None else zeros.reshape(-1, groups),
    ).dequantized(dtype)
