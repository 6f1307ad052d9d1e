"""A quantized weight that stands among whole ones until it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import EllipsisType
from typing import Any

import torch

from contract.quantization.mxfp4 import Mxfp4
from contract.quantization.packed import Packed
from contract.quantization.scaled import Scaled
from contract.quantization.scheme import BadQuantization, Scheme
from contract.quantization.words import Awq, Gptq
from runner.errors import UnsupportedModel
from runner.stage.model.quantized.mxfp4 import dequantize_mxfp4
from runner.stage.model.quantized.packed import dequantize_packed
from runner.stage.model.quantized.scaled import dequantize_scaled
from runner.stage.model.quantized.words import dequantize_awq, dequantize_gptq

_DEQUANTIZE: dict[type[Scheme], Callable[..., torch.Tensor]] = {
    Scaled: dequantize_scaled,
    Packed: dequantize_packed,
    Mxfp4: dequantize_mxfp4,
    Gptq: dequantize_gptq,
    Awq: dequantize_awq,
}
# transformers reads several tensors at once, and each may be large.
_one_at_a_time = threading.Lock()


class QuantizedWeight:
    """Takes the place of safetensors' own slice in what transformers loads: `[...]` reads it."""

    def __init__(
        self, scheme: Scheme, name: str, slices: Mapping[str, Any], dtype: torch.dtype
    ) -> None:
        """`slices` are safetensors' of each part; `name` is the one that a refusal tells; `dtype`
        is the stage's."""
        self._scheme, self._name, self._slices, self._dtype = scheme, name, slices, dtype

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        """Raises UnsupportedModel for content that no header shows."""
        with _one_at_a_time, torch.no_grad():
            parts = {part: found[...] for part, found in self._slices.items()}
            try:
                return _DEQUANTIZE[type(self._scheme)](self._scheme, parts, self._dtype)
            except BadQuantization as error:
                raise UnsupportedModel(f"{self._name} {error}") from error
