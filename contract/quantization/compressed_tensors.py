"""quant_method compressed-tensors, as llm-compressor writes it: fp8, int8, and packed int4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from contract.quantization.packed import Packed
from contract.quantization.scaled import FP8, INT8, Scaled
from contract.quantization.scheme import BadQuantization, Scheme, is_size, size_pair

_KEY = "quantization_config"
_PACKED = "pack-quantized"
# Which types of numbers are stored in each format, as (type, num_bits).
_FORMATS: dict[str, dict[tuple[str, int], str]] = {
    "float-quantized": {("float", 8): FP8},
    "int-quantized": {("int", 8): INT8, ("int", 4): INT8},
    "naive-quantized": {("float", 8): FP8, ("int", 8): INT8, ("int", 4): INT8},
    _PACKED: {("int", 4): "I32", ("int", 8): "I32"},
}


def compressed_tensors(config: Mapping[str, Any]) -> Scheme:
    """Raises BadQuantization, which names the key."""
    _refuse_further(config)
    path, weights, form = _only_group(config)
    stored = _FORMATS.get(form, {})
    if not stored:
        raise BadQuantization(
            f"{_KEY}.format = {form!r} is not read, {', '.join(_FORMATS)} are (compressed-tensors)"
        )
    kind, bits = weights.get("type", "int"), weights.get("num_bits")
    if not isinstance(bits, int) or (kind, bits) not in stored:
        wanted = " or ".join(f"{of} of {count} bits" for of, count in stored)
        raise BadQuantization(f"{path} has {kind} of {bits} bits: {form} is read with {wanted}")
    block = _block(path, weights)
    symmetric = weights.get("symmetric", True) is not False
    name = "fp8" if kind == "float" else f"int{bits}"
    title = f"{name} {_in_blocks(block)} (compressed-tensors)"
    if form == _PACKED:
        return Packed(title, bits, block, symmetric)
    return Scaled(title, stored[kind, bits], block, symmetric)


def _refuse_further(config: Mapping[str, Any]) -> None:
    """What changes weights beside their quantization."""
    sparsity = config.get("sparsity_config")
    form = sparsity.get("format", "dense") if isinstance(sparsity, Mapping) else "dense"
    if form != "dense":
        raise BadQuantization(f"{_KEY}.sparsity_config.format = {form!r}: only dense is read")
    if transform := config.get("transform_config"):
        groups = transform.get("config_groups") if isinstance(transform, Mapping) else transform
        if groups:
            raise BadQuantization(f"{_KEY}.transform_config: transforms of activations are not run")


def _only_group(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], str]:
    """Where the weights are described, how, and in which format: of several groups the same."""
    groups = config.get("config_groups")
    found: list[tuple[str, Mapping[str, Any], str]] = []
    for name, group in groups.items() if isinstance(groups, Mapping) else ():
        path = f"{_KEY}.config_groups.{name}.weights"
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            found.append((path, weights, str(group.get("format") or config.get("format"))))
    if not found:
        raise BadQuantization(f"{_KEY}.config_groups describes no weights (compressed-tensors)")
    first = found[0]
    for path, weights, form in found[1:]:
        if (weights, form) != first[1:]:
            raise BadQuantization(f"{path} is another than {first[0]}: only one kind is read")
    return first


def _block(path: str, weights: Mapping[str, Any]) -> tuple[int, int] | None:
    strategy, size = weights.get("strategy"), weights.get("group_size")
    if strategy is None:
        strategy = "group" if size and size != -1 else "channel"
    if strategy in ("tensor", "channel"):
        return None
    if strategy == "group":
        if not is_size(size):
            raise BadQuantization(f"{path}.group_size = {size!r}: must be a whole number above 0")
        return 1, size
    if strategy == "block":
        return size_pair(weights.get("block_structure"), f"{path}.block_structure")
    raise BadQuantization(
        f"{path}.strategy = {strategy!r} is not read; tensor, channel, group and block are"
    )


def _in_blocks(block: tuple[int, int] | None) -> str:
    if block is None:
        return "with a scale for each matrix or row"
    height, width = block
    return f"in groups of {width}" if height == 1 else f"in blocks of {height}x{width}"
