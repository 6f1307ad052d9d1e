"""Numbers of 8 bits with scales: fp8 as several tools write it, and int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contract.quantization.scheme import (
    BESIDE_ACTIVATIONS,
    ORDER,
    SCALE,
    SCALE_DTYPES,
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
    """A matrix [rows, columns] of `dtype`, and a scale for each block; `block` None: for each row,
    or one for all. Where it is not `symmetric` a zero point lies beside each scale; in one row
    blocks may be of columns that are no neighbours, by their group's number."""

    dtype: str
    block: tuple[int, int] | None
    symmetric: bool = True
    PARTS = {
        ".weight": VALUES,
        ".weight_scale_inv": SCALE,  # as DeepSeek names it; it is multiplied with as well
        ".weight_scale": SCALE,
        ".weight_zero_point": ZEROS,
        ".weight_g_idx": ORDER,
        **BESIDE_ACTIVATIONS,
    }

    def fault(self, parts: Mapping[str, Stored]) -> str:
        values = parts[VALUES]
        if told := wrong_type(values, (self.dtype,)):
            return told
        if len(values.shape) != 2:
            return f"is of shape {list(values.shape)}, and a matrix is read"
        rows, columns = values.shape
        shapes = scale_shapes(rows, columns, self.block)
        return (
            wrong_scale(parts, shapes, symmetric=self.symmetric)
            or wrong_zeros(parts, INT8, (parts[SCALE].shape,))
            or wrong_order(parts)
        )


def scale_shapes(
    rows: int, columns: int, block: tuple[int, int] | None
) -> tuple[tuple[int, ...], ...]:
    """Those that the scales of a matrix may have."""
    if block is not None:
        return (grid(rows, columns, block),)
    return (), (1,), (rows, 1), (rows,)


def wrong_scale(
    parts: Mapping[str, Stored], shapes: tuple[tuple[int, ...], ...], *, symmetric: bool = True
) -> str:
    """In words; "" for nothing."""
    if not symmetric and ZEROS not in parts:
        return "has no zero point, and its quantization is not symmetric"
    found = parts[SCALE]
    return wrong_type(found, SCALE_DTYPES, "a scale") or wrong_shape(found, shapes, "a scale")


def wrong_zeros(
    parts: Mapping[str, Stored], dtype: str, shapes: tuple[tuple[int, ...], ...]
) -> str:
    """In words; "" for nothing, and where there are none."""
    if ZEROS not in parts:
        return ""
    found = parts[ZEROS]
    name = "a zero point"
    return wrong_type(found, (dtype,), name) or wrong_shape(found, shapes, name)


def wrong_order(parts: Mapping[str, Stored]) -> str:
    """In words; "" for nothing, and where there is none. Its length is judged with its content."""
    return wrong_type(parts[ORDER], ("I32", "I64"), "g_idx") if ORDER in parts else ""


def fp8(config: Mapping[str, Any]) -> Scheme:
    """quant_method fp8, as DeepSeek, Qwen and AutoFP8 publish it, and fbgemm_fp8."""
    size = config.get("weight_block_size")
    if size is None:
        return Scaled("fp8 with a scale for each matrix or row", FP8, None)
    block = size_pair(size, "quantization_config.weight_block_size")
    return Scaled(f"fp8 in blocks of {block[0]}x{block[1]}", FP8, block)
