"""Four- and eight-bit numbers in words, inputs down and outputs across: GPTQ and AWQ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contract.quantization.packed import WORD, WORD_BITS
from contract.quantization.scaled import wrong_order, wrong_scale, wrong_zeros
from contract.quantization.scheme import (
    ORDER,
    SCALE,
    VALUES,
    ZEROS,
    BadQuantization,
    Scheme,
    Stored,
    is_size,
    wrong_type,
)

_KEY = "quantization_config"
_GPTQ_BITS, _AWQ_BITS = (2, 4, 8), (4,)


@dataclass(frozen=True)
class Words(Scheme):
    """Scales [groups, outputs], and zero points packed along the outputs, of a weight [outputs,
    inputs] that is stored turned. `group` inputs share a scale, None: all do."""

    bits: int
    group: int | None
    WEIGHT = ".weight"
    PARTS = {".qweight": VALUES, ".qzeros": ZEROS, ".scales": SCALE, ".g_idx": ORDER}
    NEEDED = (VALUES, SCALE, ZEROS)

    @property
    def in_word(self) -> int:
        """Numbers."""
        return WORD_BITS // self.bits

    def sizes(self, words: tuple[int, ...]) -> tuple[int, int]:
        """Inputs and outputs of a weight whose words have this shape."""
        raise NotImplementedError

    def groups(self, inputs: int) -> int:
        """Of inputs that share a scale."""
        return 1 if self.group is None else -(-inputs // self.group)

    def fault(self, parts: Mapping[str, Stored]) -> str:
        values = parts[VALUES]
        if told := wrong_type(values, (WORD,)):
            return told
        if len(values.shape) != 2:
            return f"is of shape {list(values.shape)}, and a matrix is read"
        inputs, outputs = self.sizes(values.shape)
        groups = self.groups(inputs)
        return (
            wrong_scale(parts, ((groups, outputs),))
            or wrong_zeros(parts, WORD, ((groups, -(-outputs // self.in_word)),))
            or wrong_order(parts)
        )


@dataclass(frozen=True)
class Gptq(Words):
    """Packed along the inputs. `zero_offset` is what a stored zero point lacks."""

    zero_offset: int
    SPARE_BIAS = True  # AutoGPTQ's first versions

    def sizes(self, words: tuple[int, ...]) -> tuple[int, int]:
        return words[0] * self.in_word, words[1]


@dataclass(frozen=True)
class Awq(Words):
    """Packed along the outputs, in an order of its own."""

    def sizes(self, words: tuple[int, ...]) -> tuple[int, int]:
        return words[0], words[1] * self.in_word


def gptq(config: Mapping[str, Any]) -> Scheme:
    """As AutoGPTQ and GPTQModel write it; raises BadQuantization, which names the key."""
    offsets = {"gptq": 1, "gptq_v2": 0}
    form = _form(config, ("checkpoint_format", "format"), tuple(offsets))
    bits, group = _bits(config, "bits", _GPTQ_BITS), _group(config, "group_size")
    return Gptq(_title("GPTQ", bits, group), bits, group, offsets[form])


def awq(config: Mapping[str, Any]) -> Scheme:
    """As AutoAWQ writes it; raises BadQuantization, which names the key."""
    _form(config, ("version", "format", "checkpoint_format"), ("gemm",))
    bits = _bits(config, "w_bit" if "w_bit" in config else "bits", _AWQ_BITS)
    group = _group(config, "q_group_size" if "q_group_size" in config else "group_size")
    return Awq(_title("AWQ", bits, group), bits, group)


def _form(config: Mapping[str, Any], keys: tuple[str, ...], read: tuple[str, ...]) -> str:
    """The first of `read` where no key says another."""
    key = next((key for key in keys if config.get(key)), keys[0])
    form = config.get(key) or read[0]
    if str(form).lower() not in read:
        wanted = " or ".join(read)
        raise BadQuantization(f"{_KEY}.{key} = {form!r} is not read, {wanted} is")
    return str(form).lower()


def _bits(config: Mapping[str, Any], key: str, read: tuple[int, ...]) -> int:
    bits = config.get(key)
    if not is_size(bits) or bits not in read:
        wanted = " or ".join(map(str, read))
        raise BadQuantization(f"{_KEY}.{key} = {bits!r} is not read, {wanted} is")
    return bits


def _group(config: Mapping[str, Any], key: str) -> int | None:
    size = config.get(key)
    if size == -1:
        return None
    if not is_size(size):
        raise BadQuantization(f"{_KEY}.{key} = {size!r}: must be a whole number above 0, or -1")
    return size


def _title(name: str, bits: int, group: int | None) -> str:
    return f"{name} int{bits}" + (f" in groups of {group}" if group else "")
