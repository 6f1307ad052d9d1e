"""Four-bit floats with an exponent for each group -> the weights of experts."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from contract.quantization.mxfp4 import Mxfp4
from contract.quantization.scheme import SCALE, VALUES

_BIAS = 127
# A sign, two bits of exponent, one of mantissa.
_HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NUMBERS = torch.tensor([*_HALF, *(-number for number in _HALF)])


def dequantize_mxfp4(
    _scheme: Mxfp4, parts: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    """[experts, inputs, outputs] of `dtype`; one expert at a time lies beside it in float32."""
    blocks, scales = parts[VALUES], parts[SCALE]
    experts, outputs, groups, width = blocks.shape
    result = torch.empty(experts, groups * width * 2, outputs, dtype=dtype)
    for expert in range(experts):
        exponents = scales[expert].to(torch.int32).unsqueeze(-1) - _BIAS
        pairs = torch.stack((blocks[expert] & 0xF, blocks[expert] >> 4), dim=-1)
        numbers = _NUMBERS[pairs.flatten(-2).to(torch.int32)]
        result[expert] = torch.ldexp(numbers, exponents).reshape(outputs, -1).T
    return result
