"""Attention in plain torch, one request after the other: on CPUs, and wherever no kernel does all
requests of a step in one call."""

from __future__ import annotations

import torch
from torch.nn import functional

from runner.stage.model.packed_step import AttentionRule, PackedStep

# 256 MiB in float32, of which a few copies live at once.
SCORES_AT_ONCE = 64 * 2**20


def attend_by_request(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: PackedStep,
    rule: AttentionRule,
) -> torch.Tensor:
    """query [heads, tokens, size], keys and values as in the pool; [tokens, heads, value size].

    A request's rows are computed by themselves, so that they have the same bits in any company.
    """
    heads, tokens, size = query.shape
    kv_heads = len(keys)
    # A group's heads as rows of one head: each key is read once per group, not once per head.
    groups = query.transpose(0, 1).reshape(tokens, 1, kv_heads, heads // kv_heads, size)
    by_hand = rule.softcap is not None or rule.sinks is not None
    results = []
    for span in step.batch.spans:
        begin = span.begin(rule.window)
        place, count = span.place + begin, span.end - begin
        seen = (keys.narrow(1, place, count), values.narrow(1, place, count))
        if span.length == 1 and not by_hand:
            row = functional.scaled_dot_product_attention(
                groups[span.first], seen[0][None], seen[1][None], scale=rule.scaling
            )
            results.append(row)
            continue
        rows = query[:, span.first : span.first + span.length]
        if by_hand:
            mask = step.mask(span, rule.window, query.dtype) if span.length > 1 else None
            result = _attend_by_hand(rows, *seen, mask, rule)
        else:
            whole = span.start == 0 and (rule.window is None or span.length <= rule.window)
            mask = None if whole else step.mask(span, rule.window, query.dtype)
            result = functional.scaled_dot_product_attention(
                rows[None],
                seen[0][None],
                seen[1][None],
                attn_mask=mask,
                is_causal=whole,
                scale=rule.scaling,
                enable_gqa=heads != kv_heads,
            )[0]
        results.append(result.transpose(0, 1).view(span.length, kv_heads, heads // kv_heads, -1))
    packed = results[0] if len(results) == 1 else torch.cat(results)
    return packed.reshape(tokens, heads, -1)


def _attend_by_hand(
    rows: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    rule: AttentionRule,
) -> torch.Tensor:
    """What torch's fused attention has not: capped scores and sinks, in transformers' order.

    rows [heads, tokens, size], keys [KV heads, length, size]; [heads, tokens, value size]. At most
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
                rule,
            )
            for first in range(0, tokens, at_once)
        ]
        return torch.cat(parts, dim=1)
    scale = size**-0.5 if rule.scaling is None else rule.scaling
    grouped = rows.reshape(kv_heads, -1, size)
    scores = (grouped @ keys.transpose(1, 2)).mul_(scale).view(heads, tokens, length)
    if rule.softcap:
        scores = scores.div_(rule.softcap).tanh_().mul_(rule.softcap)
    if mask is not None:
        scores = scores + mask
    if rule.sinks is None:
        weights = scores.softmax(-1, dtype=torch.float32).to(rows.dtype)
    else:
        column = rule.sinks.to(scores.dtype).view(heads, 1, 1).expand(heads, tokens, 1)
        weights = torch.cat((scores, column), dim=-1).softmax(-1, dtype=torch.float32)
        weights = weights[..., :-1].to(rows.dtype)
    result = weights.reshape(kv_heads, -1, length) @ values
    return result.view(heads, tokens, values.shape[-1])
