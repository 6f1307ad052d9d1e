"""What the list of a model's files shows: whether ranks can load it at all. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from contract.models import CONFIG, QUANTIZATION_FILES, SINGLE_FILE, TENSOR_INDEX, TOKENIZER
from contract.quantization.scheme import BadQuantization
from contract.quantization.table import read_scheme, scheme_of
from infra.plan.quantized_files import sign_in_names

_CONVERT = "load it with transformers and write it with save_pretrained"
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".ckpt")


class BadModel(ValueError):
    """What can never be served: a wrong folder, an unknown demo model, quantized weights."""


def parse_config(text: str) -> dict[str, Any]:
    """A config.json; raises BadModel."""
    return _parsed(text, CONFIG)


def indexed_files(text: str) -> dict[str, str]:
    """A tensor index: the file of each tensor; raises BadModel."""
    weights = _parsed(text, TENSOR_INDEX).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise BadModel(f"has a {TENSOR_INDEX} without a weight_map")
    return {str(tensor): str(file) for tensor, file in weights.items()}


def _parsed(text: str, file: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadModel(f"has a {file} that is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadModel(f"has a {file} that is not an object")
    return found


def weight_file_names(
    names: Collection[str], index: dict[str, str] | None, config: Mapping[str, Any]
) -> list[str]:
    """The files that ranks read weights from, of the files `names` and the index if there is one.

    Raises BadModel where the files cannot be served, or one is missing.
    """
    scheme = scheme_of(config)
    signs = [name for name in QUANTIZATION_FILES if name in names]
    if scheme is None and signs:
        raise quantized(config, f"it has a {signs[0]}")
    if index is not None and (sign := sign_in_names(index, scheme)):
        raise quantized(config, f"{TENSOR_INDEX} {sign}")
    weights = sorted(set(index.values())) if index is not None else [SINGLE_FILE]
    if index is None and SINGLE_FILE not in names:
        raise BadModel(_without_weights(names))
    if missing := [name for name in weights if name not in names]:
        raise BadModel(
            f"is not whole: {TENSOR_INDEX} names {len(weights)} files, and there is no "
            + ", ".join(missing[:3])
            + (f" (and {len(missing) - 3} more)" if missing[3:] else "")
        )
    if TOKENIZER not in names:
        raise BadModel(f"has no {TOKENIZER}, which the master reads texts with: {_CONVERT}")
    return weights


def quantized(config: Mapping[str, Any], sign: str) -> BadModel:
    """The refusal of weights that are not read, which `sign` shows; config.json's own fault comes
    first."""
    try:
        if (described := config.get("quantization_config")) is not None:
            read_scheme(described)
    except BadQuantization as error:
        sign = f"{error}; {sign}"
    return BadModel(f"has quantized weights that are not served: {sign}")


def _without_weights(names: Collection[str]) -> str:
    others = sorted(name for name in names if name.endswith(_OTHER_WEIGHTS) and "/" not in name)
    other = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if others and not other:
        return f"has weights as {others[0]} only, and safetensors files alone are read: {_CONVERT}"
    found = f"; {sorted(other)[0]} is named otherwise" if other else ""
    return f"has neither {SINGLE_FILE} nor {TENSOR_INDEX}{found}: {_CONVERT}"
