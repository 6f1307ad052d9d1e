"""Whether a model's files show that its weights are quantized, without torch.

A stage judges by the model's own modules; this finds early what files alone tell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from contract.models import WEIGHT_DTYPES, quantization_file

# What the usual formats (GPTQ, AWQ, bitsandbytes, compressed-tensors, FP8) store beside a weight.
_BESIDE_A_WEIGHT = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|absmax|quant_map|weight_packed|weight_scale|weight_scale_inv"
    r"|weight_scale_2|weight_zero_point|input_scale)$"
)
_LENGTH_BYTES = 8  # of the header, little-endian, before it
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own bound


def sign_in_names(tensors: Iterable[str]) -> str:
    """The first of these tensors that lies beside a quantized weight; "" for none."""
    return next((tensor for tensor in tensors if _BESIDE_A_WEIGHT.search(tensor)), "")


def quantization_sign(folder: Path) -> str:
    """What shows it, in words; "" where nothing does, or the files are not here."""
    if name := quantization_file(folder):
        return f"it has a {name}"
    for path in sorted(folder.glob("*.safetensors")):
        for tensor, row in _header(path).items():
            dtype = row.get("dtype") if isinstance(row, dict) else None
            if _BESIDE_A_WEIGHT.search(tensor):
                return f"{path.name} has {tensor}"
            if tensor.endswith(".weight") and isinstance(dtype, str) and dtype not in WEIGHT_DTYPES:
                return f"{path.name} has {tensor} of type {dtype}"
    return ""


def _header(path: Path) -> dict[str, Any]:
    """{} for a file that is none: whoever reads the weights says so."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if length > _MAX_HEADER_BYTES:
                return {}
            header = json.loads(file.read(length))
    except (OSError, ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}
