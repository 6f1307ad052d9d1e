"""quant_method of a config.json -> how its weights are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from contract.quantization.compressed_tensors import compressed_tensors
from contract.quantization.mxfp4 import mxfp4
from contract.quantization.scaled import fp8
from contract.quantization.scheme import BadQuantization, Scheme
from contract.quantization.words import awq, gptq

METHODS: dict[str, Callable[[Mapping[str, Any]], Scheme]] = {
    "fp8": fp8,
    "fbgemm_fp8": fp8,
    "compressed-tensors": compressed_tensors,
    "mxfp4": mxfp4,
    "gptq": gptq,
    "awq": awq,
}


def read_scheme(config: Any) -> Scheme:
    """What a quantization_config describes; raises BadQuantization, which names the key."""
    if not isinstance(config, Mapping):
        raise BadQuantization("quantization_config is not an object")
    method = config.get("quant_method")
    if not isinstance(method, str) or method not in METHODS:
        raise BadQuantization(
            f"quantization_config.quant_method = {method!r} is not read; {', '.join(METHODS)} are"
        )
    return METHODS[method](config)


def scheme_of(config: Mapping[str, Any]) -> Scheme | None:
    """Of a config.json; None where its weights are whole, or how they are stored is not read."""
    try:
        found = config.get("quantization_config")
        return None if found is None else read_scheme(found)
    except BadQuantization:
        return None
