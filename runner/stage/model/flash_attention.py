"""Attention of all requests of a step in one call of torch's compiled flash kernel.

The kernel takes a request's keys from any row of one tensor on, so slots of a pool need no table of
pages. Nobody has run it yet; the tests run the same calls with a kernel of their own.
"""

from __future__ import annotations

import torch

from runner.stage.model.packed_step import AttentionRule, PackedStep


def flash_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: PackedStep,
    rule: AttentionRule,
) -> torch.Tensor:
    """query [heads, tokens, size], keys and values as in the pool; [tokens, heads, size]."""
    several = step.batch.max_q > 1
    seen = step.seen_within(rule.window)
    result: torch.Tensor
    result, scores = torch.ops.aten._flash_attention_forward(
        query.transpose(0, 1),
        keys.transpose(0, 1),
        values.transpose(0, 1),
        step.cu_q,
        seen.starts,
        step.batch.max_q,
        seen.max_k,
        dropout_p=0.0,
        # One row of each request sees all of its keys: without masks the kernel reads a key once
        # for all heads that share it, and splits long texts.
        is_causal=several and rule.window is None,
        return_debug_mask=False,
        scale=rule.scaling,
        window_size_left=rule.window - 1 if several and rule.window is not None else -1,
        window_size_right=0 if several else -1,
        seqused_k=seen.used,
    )[:2]
    if rule.sinks is None:
        return result
    # exp(scores) is what the weights were divided by; a sink adds its own to it.
    share = torch.sigmoid(scores.transpose(0, 1) - rule.sinks.float())
    return result * share[..., None].to(result.dtype)
