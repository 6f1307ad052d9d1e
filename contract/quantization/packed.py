"""Several numbers of few bits in one word, along the rows, as compressed-tensors packs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from contract.quantization.scaled import (
    INT8,
    scale_shapes,
    wrong_order,
    wrong_scale,
    wrong_zeros,
)
from contract.quantization.scheme import (
    BESIDE_ACTIVATIONS,
    ORDER,
    SCALE,
    SHAPE,
    VALUES,
    ZEROS,
    Scheme,
    Stored,
    wrong_shape,
    wrong_type,
)

WORD = "I32"
WORD_BITS = 32


@dataclass(frozen=True)
class Packed(Scheme):
    """Words [rows, words] of numbers of `bits` each, the lowest bits first; scales, `block` and
    `symmetric` as in Scaled. A tensor [2] says how many rows and columns there are."""

    bits: int
    block: tuple[int, int] | None
    symmetric: bool = True
    PARTS = {
        ".weight_packed": VALUES,
        ".weight_scale": SCALE,
        ".weight_shape": SHAPE,
        ".weight_zero_point": ZEROS,
        ".weight_g_idx": ORDER,
        **BESIDE_ACTIVATIONS,
    }
    NEEDED = (VALUES, SCALE, SHAPE)

    @property
    def in_word(self) -> int:
        """Numbers."""
        return WORD_BITS // self.bits

    def fault(self, parts: Mapping[str, Stored]) -> str:
        values, shape = parts[VALUES], parts[SHAPE]
        told = wrong_type(values, (WORD,)) or wrong_type(shape, ("I64", WORD), "weight_shape")
        if told or (told := wrong_shape(shape, ((2,),), "weight_shape")):
            return told
        if len(values.shape) != 2:
            return f"is of shape {list(values.shape)}, and a matrix is read"
        rows, words = values.shape
        # How much of the last word is used only its shape's content says.
        full = words * self.in_word
        shapes = scale_shapes(rows, full, self.block) + scale_shapes(
            rows, full - self.in_word + 1, self.block
        )
        return (
            wrong_scale(parts, tuple(dict.fromkeys(shapes)), symmetric=self.symmetric)
            or self._wrong_zeros(parts, rows)
            or wrong_order(parts)
        )

    def _wrong_zeros(self, parts: Mapping[str, Stored], rows: int) -> str:
        """They are packed down the columns, by older versions not at all."""
        scale = parts[SCALE].shape
        if ZEROS not in parts or parts[ZEROS].dtype == INT8:
            return wrong_zeros(parts, INT8, (scale,))
        return wrong_zeros(parts, WORD, ((-(-rows // self.in_word), *scale[1:]),))
