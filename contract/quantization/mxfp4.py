"""quant_method mxfp4: the experts of gpt-oss as they are published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contract.quantization.scheme import SCALE, VALUES, Scheme, Stored, wrong_shape, wrong_type

GROUP_BYTES = 16  # of two numbers each


@dataclass(frozen=True)
class Mxfp4(Scheme):
    """Weights [experts, inputs, outputs], stored as bytes [experts, outputs, groups, GROUP_BYTES]
    with an exponent for each group."""

    WEIGHT = ""
    PARTS = {"_blocks": VALUES, "_scales": SCALE}

    def fault(self, parts: Mapping[str, Stored]) -> str:
        blocks, scales = parts[VALUES], parts[SCALE]
        if told := wrong_type(blocks, ("U8",)) or wrong_type(scales, ("U8",), "scales"):
            return told
        if len(blocks.shape) != 4 or blocks.shape[3] != GROUP_BYTES:
            wanted = f"[experts, outputs, groups, {GROUP_BYTES}]"
            return f"is of shape {list(blocks.shape)}, and {wanted} is read"
        return wrong_shape(scales, (blocks.shape[:3],), "scales")


def mxfp4(_config: Mapping[str, Any]) -> Scheme:
    """What is not quantized the tensors tell."""
    return Mxfp4("mxfp4 (experts)")
