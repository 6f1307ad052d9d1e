"""Words of several numbers, as compressed-tensors packs them -> a weight."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from contract.quantization.packed import WORD_BITS, Packed
from contract.quantization.scheme import ORDER, SCALE, SHAPE, VALUES, ZEROS, BadQuantization
from runner.stage.model.quantized.matrix import Matrix, in_blocks, in_groups


def dequantize_packed(
    scheme: Packed, parts: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    """[rows, columns] of `dtype`."""
    words, scale = parts[VALUES], parts[SCALE]
    rows, columns = parts[SHAPE].tolist()
    if rows != words.shape[0] or -(-columns // scheme.in_word) != words.shape[1]:
        raise BadQuantization(
            f"holds {list(words.shape)} words of {scheme.in_word} numbers, and weight_shape is "
            f"{[rows, columns]}"
        )
    block = scheme.block or (1 if scale.numel() == rows else rows, columns)
    groups = -(-columns // block[1])
    middle = 2 ** (scheme.bits - 1)
    zeros = parts.get(ZEROS)
    if zeros is not None and zeros.dtype == torch.int32:
        zeros = unpacked(zeros.T, scheme.bits)[:, :rows].T - middle
    return Matrix(
        lambda first, end: unpacked(words[first:end], scheme.bits)[:, :columns] - middle,
        scale.reshape(-1, groups),
        in_blocks(rows, block[0]),
        in_groups(parts.get(ORDER), columns, block[1]),
        None if zeros is None else zeros.reshape(-1, groups),
    ).dequantized(dtype)


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """[rows, words] int32 -> [rows, numbers], the lowest bits of a word first."""
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32)
    numbers: torch.Tensor = (words.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return numbers.reshape(words.shape[0], -1)
