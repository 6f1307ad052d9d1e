"""What the names in a checkpoint's files stand for: a model's weights, or nothing that it takes."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from runner.errors import UnsupportedModel
from runner.stage.model.layout import ModelLayout

# Buffers that older versions of transformers stored: computed anew, or masks that nothing reads.
_OLD_BUFFERS = (
    r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$",
    r"(^|\.)position_ids$",
    r"(attn|attention)\.(masked_)?bias$",
)
_SHOWN = 4


class StoredNames:
    """The names of one checkpoint, read by transformers' own renaming and fusing."""

    def __init__(self, model: Any, layout: ModelLayout) -> None:
        """`model` is the whole one, on the meta device."""
        self._layout, self._prefix = layout, model.base_model_prefix
        self._class_name = type(model).__name__
        changes = get_model_conversion_mapping(model)
        self._renamings = [change for change in changes if isinstance(change, WeightRenaming)]
        self._converters = [change for change in changes if isinstance(change, WeightConverter)]
        ignored = (*(model._keys_to_ignore_on_load_unexpected or ()), *_OLD_BUFFERS)
        self._ignored = re.compile("|".join(f"({pattern})" for pattern in ignored))

    def of_weights(self, keys: Iterable[str], spare: Container[str] = ()) -> dict[str, str]:
        """The weight that each key is stored for, or goes into; keys that are of none are left out,
        also those that the model may have no weight for, `spare`.

        Raises UnsupportedModel where the model's layers, embedding or head do not take a key:
        without it the rest of a quantized weight would load as if it were whole.
        """
        known, names, untaken = self._layout.weights, {}, []
        for key in keys:
            name = self._name(key)
            if name in known:
                names[key] = name
            elif key not in spare and self._matters(name) and not self._is_ignored(key, name):
                untaken.append(key)
        if untaken:
            shown = ", ".join(sorted(untaken)[:_SHOWN])
            more = f" and {len(untaken) - _SHOWN} more" if len(untaken) > _SHOWN else ""
            raise UnsupportedModel(
                f"model_type {self._layout.model_type} cannot be split: its files have {shown}"
                f"{more}, which {self._class_name} does not take: they are another model's, or "
                "of a quantization that config.json does not describe"
            )
        return self._with_tied(names)

    def _name(self, key: str) -> str:
        known = self._layout.weights
        name: str
        name, _ = rename_source_key(key, self._renamings, self._converters, self._prefix, known)
        if name not in known:
            name, _ = rename_source_key(key, [], [], self._prefix, known)
        return name

    def _with_tied(self, names: dict[str, str]) -> dict[str, str]:
        """A weight that is stored only under a name that shares it goes by its own, which every
        stage that holds it knows."""
        stored = set(names.values())
        moved = {
            shared: own
            for shared, own in self._layout.tied.items()
            if shared in stored and own not in stored
        }
        return {key: moved.get(name, name) for key, name in names.items()}

    def _matters(self, name: str) -> bool:
        """Whether it lies in one of the layers or in a module that runs before or after them."""
        layout = self._layout
        outside = tuple(f"{module}." for module in (*layout.before, *layout.after))
        for full in (name, f"{self._prefix}.{name}"):
            _, inside, rest = full.partition(f"{layout.layer_list}.")
            index = rest.partition(".")[0]
            if inside and full.startswith(inside):
                return index.isdecimal() and int(index) < layout.num_layers
            if full.startswith(outside):
                return True
        return False

    def _is_ignored(self, key: str, name: str) -> bool:
        return any(self._ignored.search(text) for text in (key, name))
