"""GPTQ's and AWQ's words -> a weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from contract.quantization.scheme import BIAS, ORDER, SCALE, VALUES, ZEROS, BadQuantization
from contract.quantization.words import Awq, Gptq, Words
from runner.stage.model.quantized.matrix import Matrix, in_blocks, in_groups
from runner.stage.model.quantized.packed import unpacked

# Which of a word's places, from the lowest bits, each of its outputs has.
_AWQ_PLACES = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])


def dequantize_gptq(
    scheme: Gptq, parts: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    """[outputs, inputs] of `dtype`."""
    words = parts[VALUES]
    if BIAS in parts and bool(parts[BIAS].any()):
        raise BadQuantization("has a bias beside it that is not 0, and the model has none there")
    _, outputs = scheme.sizes(tuple(words.shape))
    # Where it is 0, a zero point less one is the largest number.
    zeros = unpacked(parts[ZEROS], scheme.bits)[:, :outputs] + scheme.zero_offset
    zeros = zeros & (2**scheme.bits - 1)

    def numbers(first: int, end: int) -> torch.Tensor:
        begin = first // scheme.in_word
        rows = unpacked(words[begin : -(-end // scheme.in_word)].T, scheme.bits).T
        return rows[first - begin * scheme.in_word :][: end - first]

    return _matrix(scheme, parts, numbers, zeros).dequantized(dtype, transposed=True)


def dequantize_awq(
    scheme: Awq, parts: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    """[outputs, inputs] of `dtype`."""
    words = parts[VALUES]

    def in_order(rows: torch.Tensor) -> torch.Tensor:
        places = unpacked(rows, scheme.bits).reshape(len(rows), -1, scheme.in_word)
        return places[:, :, _AWQ_PLACES].flatten(1)

    def numbers(first: int, end: int) -> torch.Tensor:
        return in_order(words[first:end])

    matrix = _matrix(scheme, parts, numbers, in_order(parts[ZEROS]))
    return matrix.dequantized(dtype, transposed=True)


def _matrix(
    scheme: Words,
    parts: Mapping[str, torch.Tensor],
    numbers: Callable[[int, int], torch.Tensor],
    zeros: torch.Tensor,
) -> Matrix:
    """[inputs, outputs]"""
    inputs, outputs = scheme.sizes(tuple(parts[VALUES].shape))
    group = in_groups(parts.get(ORDER), inputs, scheme.group or inputs)
    return Matrix(numbers, parts[SCALE], group, in_blocks(outputs, 1), zeros)
