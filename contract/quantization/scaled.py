"""Numbers of 8 bits with scales: fp8 as several tools write it, and int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contract.quantization.scheme import (
    SCALE,
    SCALE_DTYPES,
    UNREAD,
    VALUES,
    ZEROS,
    Scheme,
    Stored,
    grid,
    size_pair,
    wrong_shape,
    wrong_type,
)

FP8, INT8 = "F8_E4M3", "I8"


@dataclass(frozen=True)
class Scaled(Scheme):
    """A matrix [rows, columns] of `dtype`, and a scale (with int8 also a zero point) for each
    block; `block` None: for each row, or one for all."""

    dtype: str
    block: tuple[int, int] | None
    PARTS = {
        ".weight": VALUES,
        ".weight_scale_inv": SCALE,  # as DeepSeek names it; it is multiplied with as well
        ".weight_scale": SCALE,
        ".weight_zero_point": ZEROS,
        **dict.fromkeys(
            (
                ".input_scale", ".input_scale_ub", ".input_zero_point", ".activation_scale",
                ".output_scale", ".k_scale", ".v_scale",
            ),
            UNREAD,
        ),
    }  # fmt: skip

    def fault(self, parts: Mapping[str, Stored]) -> str:
        values, scale = parts[VALUES], parts[SCALE]
        if told := wrong_type(values, (self.dtype,)):
            return told
        if len(values.shape) != 2:
            return f"is of shape {list(values.shape)}, and a matrix is read"
        shapes = self._scale_shapes(*values.shape)
        told = wrong_type(scale, SCALE_DTYPES, "a scale")
        told = told or wrong_shape(scale, shapes, "a scale")
        if told or ZEROS not in parts:
            return told
        zeros = parts[ZEROS]
        return wrong_type(zeros, (INT8,), "a zero point") or wrong_shape(
            zeros, (scale.shape,), "a zero point"
        )

    def _scale_shapes(self, rows: int, columns: int) -> tuple[tuple[int, ...], ...]:
        if self.block is not None:
            return (grid(rows, columns, self.block),)
        return (), (1,), (rows, 1), (rows,)


def fp8(config: Mapping[str, Any]) -> Scheme:
    """quant_method fp8, as DeepSeek, Qwen and AutoFP8 publish it, and fbgemm_fp8."""
    size = config.get("weight_block_size")
    if size is None:
        return Scaled("fp8 with a scale for each matrix or row", FP8, None)
    block = size_pair(size, "quantization_config.weight_block_size")
    return Scaled(f"fp8 in blocks of {block[0]}x{block[1]}", FP8, block)
