"""The attention function and the mask function that transformers' models call for us.

Registered by name through transformers' public interfaces. All requests of a step lie in one row;
this function stores the keys and values of each in its KV slot and attends within the slot.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from runner.errors import UnsupportedModel
from runner.stage.model.attention_by_request import attend_by_request
from runner.stage.model.attention_kind import AttentionKind, attention_kind
from runner.stage.model.flash_attention import flash_attention
from runner.stage.model.packed_step import AttentionRule, PackedStep

IMPLEMENTATION = "splitstack"
_KNOWN_TENSORS = ("s_aux", "position_ids", "cache_position")


@dataclass(frozen=True, slots=True)
class MaskWindow:
    """What stands for a causal mask: how far back a query sees, itself included; None: all."""

    window: int | None


@dataclass(slots=True)
class AttentionCall:
    """One call seen in a forward on the meta device."""

    module: torch.nn.Module
    layer: int
    key_shape: tuple[int, int]
    value_shape: tuple[int, int]


class _Current(threading.local):
    step: PackedStep | None = None
    calls: list[AttentionCall] | None = None


current = _Current()


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: object,
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 - training only
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' contract: query [1, heads, tokens, size], key and value [1, KV heads, ...].

    Returns [1, tokens, heads, value size]. The window of the mask wins over the argument: so do
    transformers' own sdpa and eager functions, which see the mask only.
    """
    window = attention_mask.window if isinstance(attention_mask, MaskWindow) else sliding_window
    if current.calls is not None:
        _record(module, key, value, attention_mask, kwargs)
        return _shape_only(query, key, value, s_aux), None
    step = current.step
    assert step is not None, "attention outside of a step"
    keys, values = step.pool.layers[module.layer_idx]  # type: ignore[index]
    keys.index_copy_(1, step.slots, key[0])
    values.index_copy_(1, step.slots, value[0])
    rule = AttentionRule(window, scaling, softcap or None, s_aux)
    kind = attention_kind(
        step.capability, query.dtype, keys.shape[-1], values.shape[-1], rule.softcap
    )
    step.by_request |= kind is AttentionKind.BY_REQUEST
    attend = flash_attention if kind is AttentionKind.FLASH else attend_by_request
    return attend(query[0], keys, values, step, rule)[None], None


def _record(
    module: torch.nn.Module,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: object,
    kwargs: dict[str, Any],
) -> None:
    assert current.calls is not None
    if attention_mask is not None and not isinstance(attention_mask, MaskWindow):
        raise UnsupportedModel(f"{type(module).__name__} makes an attention mask of its own")
    for name, argument in kwargs.items():
        if isinstance(argument, torch.Tensor) and name not in _KNOWN_TENSORS:
            raise UnsupportedModel(f"{type(module).__name__} attends with {name}")
    if kwargs.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise UnsupportedModel(f"{type(module).__name__} is not causal")
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise UnsupportedModel(f"{type(module).__name__} has no layer_idx")
    shapes = [(tensor.shape[1], tensor.shape[3]) for tensor in (key, value)]
    current.calls.append(AttentionCall(module, layer, shapes[0], shapes[1]))


def _shape_only(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor | None
) -> torch.Tensor:
    """A result of the right shape that depends on everything the real one does."""
    result = query.sum(-1, keepdim=True) + value.sum() + key.sum()
    if sinks is not None:
        result = result + sinks.sum()
    return result.expand(*query.shape[:-1], value.shape[-1]).transpose(1, 2)


def mask_window(
    *, use_vmap: bool = False, local_size: int | None = None, **kwargs: Any
) -> MaskWindow:
    """transformers' contract of a mask function; carries the window instead of a mask."""
    if "allow_is_bidirectional_skip" in kwargs:
        raise UnsupportedModel("the model attends in both directions")
    if use_vmap:
        raise UnsupportedModel("the model's attention mask is not a causal one with a window")
    return MaskWindow(local_size)


AttentionInterface.register(IMPLEMENTATION, attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, mask_window)
