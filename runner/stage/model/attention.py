"""The attention function and the mask function that transformers' models call for us.

Registered by name through transformers' public interfaces. All requests of a step lie in one row;
this function stores the keys and values of each in its KV slot and attends within the slot.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from runner.errors import UnsupportedModel
from runner.stage.model.kv_cache import Slot

IMPLEMENTATION = "splitstack"
# 256 MiB in float32, of which a few copies live at once.
SCORES_AT_ONCE = 64 * 2**20
_KNOWN_TENSORS = ("s_aux", "position_ids", "cache_position")


@dataclass(frozen=True, slots=True)
class MaskWindow:
    """What stands for a causal mask: how far back a query sees, itself included; None: all."""

    window: int | None


@dataclass(slots=True)
class Span:
    """One request's rows `first` .. `first + length - 1` of a step, from position `start` on."""

    slot: Slot
    first: int
    length: int
    start: int


@dataclass(slots=True)
class PackedStep:
    """A step's rows; masks are made once per step and window, not per layer."""

    spans: list[Span]
    _masks: dict[tuple[int, int, int], torch.Tensor] = field(default_factory=dict)

    def mask(self, span: Span, begin: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """Additive, [span.length, keys from position `begin` on]; 0 where seen, else -inf."""
        key = (span.first, begin, window or 0)
        found = self._masks.get(key)
        if found is None:
            end = span.start + span.length
            queries = torch.arange(span.start, end, device=like.device)[:, None]
            keys = torch.arange(begin, end, device=like.device)[None, :]
            hidden = keys > queries
            if window is not None:
                hidden |= keys <= queries - window
            found = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            self._masks[key] = found.masked_fill_(hidden, float("-inf"))
        return found


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
    layer: int = module.layer_idx  # type: ignore[assignment]
    manual = bool(softcap) or s_aux is not None
    query, new_keys, new_values = query[0], key[0], value[0]
    results = []
    for span in step.spans:
        first, last = span.first, span.first + span.length
        end = span.start + span.length
        keys, values = span.slot.layers[layer]
        keys[:, span.start : end] = new_keys[:, first:last]
        values[:, span.start : end] = new_values[:, first:last]
        begin = 0 if window is None else max(0, span.start + 1 - window)
        rows, seen = query[:, first:last], (keys[:, begin:end], values[:, begin:end])
        mask, causal = None, False
        if span.length > 1:
            causal = not manual and span.start == 0 and (window is None or span.length <= window)
            mask = None if causal else step.mask(span, begin, window, query)
        if manual:
            result = _attend_by_hand(rows, *seen, mask, scaling, softcap, s_aux)
        else:
            result = _attend(rows, *seen, mask, causal, scaling)
        results.append(result)
    packed = results[0] if len(results) == 1 else torch.cat(results, dim=1)
    return packed.transpose(0, 1)[None], None


def _attend(
    rows: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scaling: float | None,
) -> torch.Tensor:
    """rows [heads, tokens, size], keys [KV heads, length, size]; [heads, tokens, value size]."""
    heads, tokens, size = rows.shape
    kv_heads = keys.shape[0]
    if tokens == 1:
        # A group's heads as rows of one head: each key is read once per group, not once per head.
        rows = rows.reshape(kv_heads, heads // kv_heads, size)
    result = functional.scaled_dot_product_attention(
        rows[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=causal,
        scale=scaling,
        enable_gqa=rows.shape[0] != kv_heads,
    )
    return result.reshape(heads, 1, -1) if tokens == 1 else result[0]


def _attend_by_hand(
    rows: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """What torch's fused attention has not: capped scores and sinks, in transformers' order.

    rows [heads, tokens, size], keys [KV heads, length, size], sinks [heads]. At most
    SCORES_AT_ONCE scores exist at a time: a long prompt's would outweigh its weights.
    """
    heads, tokens, size = rows.shape
    kv_heads, length, _ = keys.shape
    at_once = max(1, SCORES_AT_ONCE // (heads * length))
    if tokens > at_once:
        parts = [
            _attend_by_hand(
                rows[:, first : first + at_once],
                keys,
                values,
                None if mask is None else mask[first : first + at_once],
                scaling,
                softcap,
                sinks,
            )
            for first in range(0, tokens, at_once)
        ]
        return torch.cat(parts, dim=1)
    scale = size**-0.5 if scaling is None else scaling
    grouped = rows.reshape(kv_heads, -1, size)
    scores = (grouped @ keys.transpose(1, 2)).mul_(scale).view(heads, tokens, length)
    if softcap:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores = scores + mask
    if sinks is None:
        weights = scores.softmax(-1, dtype=torch.float32).to(rows.dtype)
    else:
        column = sinks.to(scores.dtype).view(heads, 1, 1).expand(heads, tokens, 1)
        weights = torch.cat((scores, column), dim=-1).softmax(-1, dtype=torch.float32)
        weights = weights[..., :-1].to(rows.dtype)
    result = weights.reshape(kv_heads, -1, length) @ values
    return result.view(heads, tokens, values.shape[-1])


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
