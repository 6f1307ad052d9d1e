"""A causal language model with only a stage's layers in it, made from transformers' own class."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from contract.models import CONFIG
from runner.errors import ModelUnavailable
from runner.stage.model import attention
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.layout import ModelLayout

# While transformers constructs a model, the process's default dtype is that model's, and functions
# of torch are others. Who computes beside takes this for each step.
constructing = threading.Lock()


class PassThrough(nn.Module):
    """Stands for a layer of another stage. Keeps the plain attributes that models look at."""

    def __init__(self, layer: nn.Module, tuple_length: int) -> None:
        super().__init__()
        for name, value in vars(layer).items():
            if isinstance(value, str | int | float) and name != "training":
                setattr(self, name, value)
        self._tuple_length = tuple_length

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if self._tuple_length:
            return (hidden, *[None] * (self._tuple_length - 1))
        return hidden


class Stub(nn.Module):
    """Stands for an embedding, a norm or a head of another stage: right shape, no content."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._width, self._dtype = width, dtype

    def forward(self, inputs: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        if inputs.is_floating_point():
            if inputs.shape[-1] == self._width:
                return inputs
            shape = inputs.shape[:-1]
        else:
            shape = inputs.shape
        nothing = torch.zeros(1, dtype=self._dtype, device=inputs.device)
        return nothing.expand(*shape, self._width)


def load_pruned(
    checkpoint: Checkpoint, layers: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Any:
    """The model with this stage's weights, in evaluation mode; raises ModelUnavailable.

    transformers' own loading does the renaming, fusing and casting, tensor by tensor.
    """
    transformers_logging.disable_progress_bar()
    stage_class = make_class(checkpoint.model_class, checkpoint.layout, layers)
    model, report = stage_class.from_pretrained(
        None,
        config=checkpoint.config,
        state_dict=checkpoint.read_own(layers, dtype),
        dtype=dtype,
        device_map={"": device} if device.type != "cpu" else None,
        attn_implementation=attention.IMPLEMENTATION,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused here instead, by name
    )
    for name, found, wanted in sorted(report["mismatched_keys"]):
        raise ModelUnavailable(
            f"{checkpoint.folder}: {name} has shape {list(found)}, and the model of {CONFIG} "
            f"has {list(wanted)}"
        )
    missing = sorted(set(report["missing_keys"]) - set(model.all_tied_weights_keys))
    if missing:
        shown = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        raise ModelUnavailable(f"{checkpoint.folder}: the weights lack {shown}")
    for name, width in checkpoint.layout.only_tied(layers).items():
        _stub(model, name, width)
    return model


def make_class(model_class: type[Any], layout: ModelLayout, layers: tuple[int, int]) -> type[Any]:
    """A subclass with those layers only, under the same name and module: by these transformers
    finds its conversions."""

    def initialize(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        _prune(self, layout, layers)

    def contexts(_cls: type[Any], *args: Any, **kwargs: Any) -> list[Any]:
        return [constructing, *model_class.get_init_context(*args, **kwargs)]

    names = {
        "__init__": initialize,
        "__module__": model_class.__module__,
        "get_init_context": classmethod(contexts),
    }
    return type(model_class.__name__, (model_class,), names)


def _prune(model: Any, layout: ModelLayout, layers: tuple[int, int]) -> None:
    """Before any memory is taken: from_pretrained constructs on the meta device."""
    layer_list = model.get_submodule(layout.layer_list)
    for index, length in enumerate(layout.tuple_lengths):
        if not layers[0] <= index < layers[1]:
            layer_list[index] = PassThrough(layer_list[index], length)
    for name, width in layout.foreign_modules(layers).items():
        _stub(model, name, width)
    own = layout.own_weights(layers)
    for part_name, part in model.named_modules():
        if hasattr(part, "all_tied_weights_keys"):
            prefix = f"{part_name}." if part_name else ""
            part.all_tied_weights_keys = {
                target: source
                for target, source in part.all_tied_weights_keys.items()
                if prefix + target in own and prefix + source in own
            }


def _stub(model: Any, name: str, width: int) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, Stub(width, torch.get_default_dtype()))
