"""Which tensors of a checkpoint a stage needs, in which files, and reading only those."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from contract.models import (
    CONFIG,
    SINGLE_FILE,
    TENSOR_INDEX,
    UNSPLITTABLE,
    WEIGHT_DTYPES,
    needs_own_code,
    quantization_file,
)
from runner.errors import ModelUnavailable, UnsupportedModel
from runner.stage.model.layout import read_layout
from runner.stage.model.stored_names import StoredNames

_LAYER_KINDS = {"full_attention", "sliding_attention"}


class Checkpoint:
    """A folder as save_pretrained writes it: configuration, layout, and where each tensor lies.

    Needs only config.json and the tensor index (or the single file) until `read_own`. Raises
    ModelUnavailable, UnsupportedModel.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = _read_config(folder)
        _refuse_quantized(folder, self.config)
        self.model_class = _find_class(self.config)
        _refuse_by_config(self.config)
        self.layout, meta_model = read_layout(self.model_class, copy.deepcopy(self.config))
        self._names = StoredNames(meta_model, self.layout)

    def own_files(self, layers: tuple[int, int]) -> list[str]:
        """Names of the weight files that a stage with these layers reads."""
        if not (self.folder / TENSOR_INDEX).is_file():
            return [SINGLE_FILE]
        files = _read_index(self.folder)
        return sorted({files[key] for key in self._own_keys(files, layers)})

    def read_own(self, layers: tuple[int, int]) -> dict[str, Any]:
        """The stage's tensors, each read from disk when it is sliced, by a key that transformers
        takes for its weight.

        Read, not mapped: a mapped file would count as this process's memory.
        """
        files = self._files()
        tensors: dict[str, Any] = {}
        keys = self._own_keys(files, layers)
        for file in sorted({files[key] for key in keys}):
            reader = _open(self.folder / file)
            for key, name in keys.items():
                if files[key] == file:
                    tensor = reader.get_slice(key)
                    self._refuse_packed(file, key, name, tensor.get_dtype())
                    tensors[name if name in self.layout.tied.values() else key] = tensor
        return tensors

    def _refuse_packed(self, file: str, key: str, name: str, dtype: str) -> None:
        """Numbers of less than 16 bits, or whole ones, are a weight only with a scale."""
        if dtype not in WEIGHT_DTYPES and self.layout.weights[name].is_floating_point():
            raise UnsupportedModel(
                f"{self.folder / file}: {key} is of type {dtype}: quantized weights are not "
                f"served, weights must be of type {', '.join(WEIGHT_DTYPES)}"
            )

    def _files(self) -> dict[str, str]:
        if (self.folder / TENSOR_INDEX).is_file():
            return _read_index(self.folder)
        return dict.fromkeys(_open(self.folder / SINGLE_FILE).keys(), SINGLE_FILE)

    def _own_keys(self, keys: Iterable[str], layers: tuple[int, int]) -> dict[str, str]:
        """The stage's weights by the keys that they are stored under."""
        own = self.layout.own_weights(layers)
        names = self._names.of_weights(keys)
        return {key: name for key, name in names.items() if name in own}


def _read_config(folder: Path) -> Any:
    if not (folder / CONFIG).is_file():
        raise ModelUnavailable(f"{folder}: has no {CONFIG}")
    try:
        # Said, for otherwise transformers asks whoever sits at the terminal.
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever foreign configuration code raises
        cause = _own_code(folder) or str(error).splitlines()[0]
        raise UnsupportedModel(f"{folder / CONFIG}: {cause}") from error


def _own_code(folder: Path) -> str:
    """Where that is why: transformers' own sentence asks for leave to run it."""
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    if not isinstance(config, dict) or config.get("model_type") in CONFIG_MAPPING_NAMES:
        return ""
    return needs_own_code(config.get("model_type")) if config.get("auto_map") else ""


def _find_class(config: Any) -> type[Any]:
    try:
        found: type[Any] = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        name, reason = config.model_type, "transformers has no causal language model for it"
        raise UnsupportedModel(f"model_type {name} cannot be split: {reason}") from None
    return found


def _refuse_quantized(folder: Path, config: Any) -> None:
    """As soon as a file says so: the tensors tell too, once they are here."""
    named = getattr(config, "quantization_config", None) is not None
    if said := CONFIG if named else quantization_file(folder):
        reason = f"its weights are quantized, {said} says"
        raise UnsupportedModel(f"model_type {config.model_type} cannot be split: {reason}")


def _refuse_by_config(config: Any) -> None:
    """What a forward with a few tokens would not show."""
    text = config.get_text_config()
    reason = UNSPLITTABLE.get(config.model_type)
    if config.is_encoder_decoder:
        reason = "it is an encoder-decoder model"
    elif getattr(text, "num_kv_shared_layers", 0):
        reason = "layers share KV"
    elif kinds := set(getattr(text, "layer_types", None) or ()) - _LAYER_KINDS:
        reason = f"it has layers of kind {', '.join(sorted(kinds))}"
    elif any("dynamic" in kind for kind in rope_types(text)):
        reason = "its rotary factors change while a text grows (dynamic rope)"
    if reason is not None:
        raise UnsupportedModel(f"model_type {config.model_type} cannot be split: {reason}")


def rope_types(config: Any) -> list[str]:
    """The kinds of rotary embedding that a configuration names, one per kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return [str(entry.get("rope_type", "default")) for entry in (nested or [parameters])]


def _read_index(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / TENSOR_INDEX).read_text("utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelUnavailable(f"{folder / TENSOR_INDEX}: cannot be read: {error}") from error


def _open(path: Path) -> Any:
    if not path.is_file():
        raise ModelUnavailable(f"{path}: is missing; weights are read from safetensors files only")
    try:
        return safe_open(path, framework="pt", backend="pread")
    except (OSError, SafetensorError) as error:
        raise ModelUnavailable(f"{path}: is no safetensors file: {error}") from error
