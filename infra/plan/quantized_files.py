"""Whether a model's files show weights that are quantized in no way that is read, without torch.

A stage judges by the model's own modules; this finds early what files alone tell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from contract.models import CONFIG, SINGLE_FILE, TENSOR_INDEX, WEIGHT_DTYPES, quantization_file
from contract.quantization.scheme import BadQuantization, Scheme, Stored

# What the usual formats (GPTQ, AWQ, bitsandbytes, compressed-tensors, FP8) store beside a weight.
_BESIDE_A_WEIGHT = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|absmax|quant_map|weight_packed|weight_scale|weight_scale_inv"
    r"|weight_scale_2|weight_zero_point|input_scale)$"
)
_LENGTH_BYTES = 8  # of the header, little-endian, before it
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own bound


def sign_in_names(tensors: Iterable[str], scheme: Scheme | None) -> str:
    """What these names show against reading them, in words; "" for nothing. `scheme` is what
    config.json describes."""
    if scheme is not None:
        try:
            tensors = [name for name, parts in scheme.weights(tensors).items() if not parts]
        except BadQuantization as error:
            return f"does not fit {CONFIG}: {error}"
    sign = next((tensor for tensor in tensors if _BESIDE_A_WEIGHT.search(tensor)), "")
    return sign and f"has {sign}"


def quantization_sign(folder: Path, scheme: Scheme | None) -> str:
    """The same of a folder; "" too where its files are not here."""
    if scheme is None and (name := quantization_file(folder)):
        return f"it has a {name}"
    stored: dict[str, Stored] = {}
    file_of: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for tensor, row in _header(path).items():
            if (found := _stored(row)) is not None:
                stored[tensor], file_of[tensor] = found, path.name
    try:
        whole = _whole(stored, scheme, folder)
    except BadQuantization as error:
        return f"they do not fit {CONFIG}: {error}"
    for tensor in whole:
        if _BESIDE_A_WEIGHT.search(tensor):
            return f"{file_of[tensor]} has {tensor}"
        if tensor.endswith(".weight") and stored[tensor].dtype not in WEIGHT_DTYPES:
            return f"{file_of[tensor]} has {tensor} of type {stored[tensor].dtype}"
    return ""


def _whole(stored: Mapping[str, Stored], scheme: Scheme | None, folder: Path) -> Iterable[str]:
    """The tensors that are no part of a quantized weight; raises BadQuantization for one whose
    parts do not fit. Nothing is said of files of which some are not here."""
    if scheme is None:
        return stored
    if not _all_here(folder):
        return ()
    weights = scheme.weights(stored)
    for parts in weights.values():
        if parts:
            scheme.check(parts, stored)
    return [name for name, parts in weights.items() if not parts]


def _all_here(folder: Path) -> bool:
    try:
        named = json.loads((folder / TENSOR_INDEX).read_text("utf-8"))["weight_map"].values()
        return all((folder / str(name)).is_file() for name in named)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return (folder / SINGLE_FILE).is_file()


def _stored(row: Any) -> Stored | None:
    """None for what describes no tensor."""
    try:
        return Stored(str(row["dtype"]), tuple(map(int, row["shape"])))
    except (KeyError, TypeError, ValueError):
        return None


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
