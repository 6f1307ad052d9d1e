"""Which stored tensors make up one quantized weight, and whether they can."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

# What a stored tensor is of its weight.
VALUES, SCALE, ZEROS, ORDER, SHAPE = "values", "scale", "zeros", "order", "shape"
BIAS = "bias"  # that the model has not, and so has to be 0
UNREAD = ""  # of activations and of a quantized KV cache, which are not quantized here
BESIDE_ACTIVATIONS = dict.fromkeys(
    (
        ".input_scale", ".input_scale_ub", ".input_zero_point", ".input_g_idx",
        ".activation_scale", ".output_scale", ".output_zero_point", ".k_scale", ".v_scale",
        ".k_zero_point", ".v_zero_point",
    ),
    UNREAD,
)  # fmt: skip
SCALE_DTYPES = ("F32", "BF16", "F16")


class BadQuantization(ValueError):
    """A quantization_config that is not served, or tensors that are not as it says."""


@dataclass(frozen=True)
class Stored:
    """One tensor as the header of its file has it: safetensors' name of the type, and the shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Scheme(ABC):
    """One way to store weights. `title` is for people, as in "fp8 in blocks of 128x128"."""

    title: str
    # End of a weight's name in the model, and of the names that its parts are stored under. A
    # weight that is stored under its own name may be whole.
    WEIGHT: ClassVar[str] = ".weight"
    PARTS: ClassVar[Mapping[str, str]] = {}
    NEEDED: ClassVar[tuple[str, ...]] = (VALUES, SCALE)
    # Whether tools have stored a bias beside each weight, whatever the model.
    SPARE_BIAS: ClassVar[bool] = False

    def weights(self, keys: Iterable[str]) -> dict[str, dict[str, str]]:
        """Of all stored names those of each weight's parts; {} for what is stored as it is.

        Raises BadQuantization, with the name, where one is missing.
        """
        whole: dict[str, dict[str, str]] = {}
        found: dict[str, dict[str, str]] = {}
        for key in keys:
            end = next((end for end in self.PARTS if key.endswith(end)), None)
            if end is None:
                whole[key] = {}
            elif self.PARTS[end] != UNREAD:
                parts = found.setdefault(key.removesuffix(end) + self.WEIGHT, {})
                if other := parts.get(self.PARTS[end]):
                    raise BadQuantization(f"there are both {key} and {other}")
                parts[self.PARTS[end]] = key
        for name, parts in found.items():
            if name in whole:
                raise BadQuantization(f"there are both {name} and {next(iter(parts.values()))}")
            if parts == {VALUES: name}:
                whole[name] = {}
            elif missing := [part for part in self.NEEDED if part not in parts]:
                wanted = name.removesuffix(self.WEIGHT) + self._end_of(missing[0])
                there = parts.get(VALUES) or next(iter(parts.values()))
                raise BadQuantization(f"{there} is there without {wanted}")
        quantized = {name: parts for name, parts in found.items() if name not in whole}
        return {**whole, **quantized}

    def spare_biases(self, weights: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
        """Names of biases that a model may have none of, each with its weight's."""
        if not self.SPARE_BIAS:
            return {}
        biases = {
            name.removesuffix(self.WEIGHT) + ".bias": name for name in weights if weights[name]
        }
        return {bias: name for bias, name in biases.items() if bias in weights}

    @abstractmethod
    def fault(self, parts: Mapping[str, Stored]) -> str:
        """What is wrong with the parts of one weight, in words after its name; "" for nothing."""

    def check(self, keys: Mapping[str, str], stored: Mapping[str, Stored]) -> None:
        """Raises BadQuantization for the parts of one weight, of which all are in `stored`."""
        if told := self.fault({part: stored[key] for part, key in keys.items()}):
            raise BadQuantization(f"{keys[VALUES]} {told}")

    def _end_of(self, part: str) -> str:
        return next(end for end, found in self.PARTS.items() if found == part)


def wrong_type(stored: Stored, types: tuple[str, ...], name: str = "") -> str:
    """In words where it is none of these."""
    if stored.dtype in types:
        return ""
    start = f"has {name} of type" if name else "is of type"
    return f"{start} {stored.dtype}, and {' or '.join(types)} is read"


def wrong_shape(stored: Stored, shapes: tuple[tuple[int, ...], ...], name: str) -> str:
    """In words where it is none of these."""
    if stored.shape in shapes:
        return ""
    wanted = " or ".join(str(list(shape)) for shape in shapes)
    return f"has {name} of shape {list(stored.shape)}, and {wanted} is needed"


def grid(rows: int, columns: int, block: tuple[int, int]) -> tuple[int, int]:
    """How many blocks there are each way; those at the ends may be smaller."""
    return -(-rows // block[0]), -(-columns // block[1])


def size_pair(value: Any, key: str) -> tuple[int, int]:
    """Two whole numbers above 0; raises BadQuantization, which names the key."""
    if isinstance(value, list) and len(value) == 2 and all(map(is_size, value)):
        return value[0], value[1]
    raise BadQuantization(f"{key} = {value!r}: must be two whole numbers above 0")


def is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
