"""Which tensors of a checkpoint a stage needs, in which files, and reading only those."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
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
from contract.quantization.scheme import BIAS, VALUES, BadQuantization, Scheme, Stored
from contract.quantization.table import read_scheme
from runner.errors import ModelUnavailable, UnsupportedModel
from runner.stage.model.fused import Ingredient, uneven
from runner.stage.model.layout import read_layout
from runner.stage.model.quantized.weight import QuantizedWeight
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
        self._scheme = _take_scheme(folder, self.config)
        self.model_class = _find_class(self.config)
        _refuse_by_config(self.config)
        self.layout, meta_model = read_layout(self.model_class, copy.deepcopy(self.config))
        self._names = StoredNames(meta_model, self.layout)

    def own_files(self, layers: tuple[int, int]) -> list[str]:
        """Names of the weight files that a stage with these layers reads."""
        if not (self.folder / TENSOR_INDEX).is_file():
            return [SINGLE_FILE]
        files = _read_index(self.folder)
        own = self._own_keys(files, layers)
        return sorted({files[stored] for _, parts in own.values() for stored in parts.values()})

    def read_own(self, layers: tuple[int, int], dtype: torch.dtype) -> dict[str, Any]:
        """The stage's tensors, each read from disk when it is sliced, by a key that transformers
        takes for its weight. A quantized one is then `dtype`, the others what they are stored as.

        Read, not mapped: a mapped file would count as this process's memory.
        """
        files = self._files()
        readers: dict[str, Any] = {}
        tensors: dict[str, Any] = {}
        ingredients = []
        for key, (name, parts) in self._own_keys(files, layers).items():
            slices = {}
            for part, part_key in parts.items():
                file = files[part_key]
                if file not in readers:
                    readers[file] = _open(self.folder / file)
                slices[part] = readers[file].get_slice(part_key)
            shape = tuple(slices[VALUES].get_shape())
            ingredients.append(Ingredient(key, name, parts[VALUES], shape))
            if parts == {VALUES: key}:
                self._refuse_packed(files[key], key, name, slices[VALUES].get_dtype())
                tensor = slices[VALUES]
            else:
                tensor = self._quantized(parts, slices, dtype)
            tensors[name if name in self.layout.tied.values() else key] = tensor
        if told := uneven(ingredients):
            raise ModelUnavailable(f"{self.folder}: {told}")
        return tensors

    def _quantized(
        self, parts: dict[str, str], slices: dict[str, Any], dtype: torch.dtype
    ) -> QuantizedWeight:
        assert self._scheme is not None
        stored = {
            parts[part]: Stored(found.get_dtype(), tuple(found.get_shape()))
            for part, found in slices.items()
        }
        try:
            self._scheme.check(parts, stored)
        except BadQuantization as error:
            raise UnsupportedModel(f"{self.folder}: {error}") from error
        return QuantizedWeight(self._scheme, parts[VALUES], slices, dtype)

    def _refuse_packed(self, file: str, key: str, name: str, dtype: str) -> None:
        """Numbers of less than 16 bits, or whole ones, are a weight only with a scale."""
        if dtype not in WEIGHT_DTYPES and self.layout.weights[name].is_floating_point():
            raise UnsupportedModel(
                f"{self.folder / file}: {key} is of type {dtype}: quantized weights are read with "
                f"the scales that a quantization_config in {CONFIG} promises, others must be of "
                f"type {', '.join(WEIGHT_DTYPES)}"
            )

    def _files(self) -> dict[str, str]:
        if (self.folder / TENSOR_INDEX).is_file():
            return _read_index(self.folder)
        return dict.fromkeys(_open(self.folder / SINGLE_FILE).keys(), SINGLE_FILE)

    def _own_keys(
        self, keys: Iterable[str], layers: tuple[int, int]
    ) -> dict[str, tuple[str, dict[str, str]]]:
        """The stage's weights by the keys that they would be stored under whole: the weight that
        each goes into, and the keys of its parts."""
        found: dict[str, dict[str, str]] = {key: {} for key in keys}
        spare: dict[str, str] = {}
        if self._scheme is not None:
            try:
                found = self._scheme.weights(found)
            except BadQuantization as error:
                raise UnsupportedModel(f"{self.folder}: {error}") from error
            spare = self._scheme.spare_biases(found)
        own = self.layout.own_weights(layers)
        names = self._names.of_weights(found, spare)
        for bias, key in spare.items():
            if bias not in names:
                found[key][BIAS] = bias
        return {
            key: (name, found[key] or {VALUES: key}) for key, name in names.items() if name in own
        }


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


def _take_scheme(folder: Path, config: Any) -> Scheme | None:
    """How the weights are quantized. `config` does not say it any more: for transformers they are
    whole."""
    described = vars(config).pop("quantization_config", None)
    try:
        if described is not None:
            return read_scheme(described)
        if said := quantization_file(folder):
            raise BadQuantization(
                f"its weights are quantized, {said} says, and {CONFIG} has no quantization_config"
            )
    except BadQuantization as error:
        name = config.model_type
        raise UnsupportedModel(f"model_type {name} cannot be split: {error}") from error
    return None


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
