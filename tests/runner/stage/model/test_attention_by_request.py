"""Attention over the pool: what each request has alone, bit for bit; scores made in parts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from runner.stage.model import attention, attention_by_request
from runner.stage.model.kv_pool import KVPool
from runner.stage.model.packed_step import AttentionRule
from tests.runner.stage.model.random_company import RandomCompany, packed_step


@pytest.mark.parametrize(
    ("dtype", "count"), [(torch.float32, 1000), (torch.bfloat16, 200)], ids=["float32", "bfloat16"]
)
def test_each_request_has_the_bits_that_it_has_alone(
    dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through thousands of steps, with what others left in the pool poisoned."""
    gathered: list[bool] = []
    gather = KVPool._gather

    def counted(self: KVPool, last: object) -> None:
        gathered.append(last is not None)
        gather(self, last)  # type: ignore[arg-type]

    monkeypatch.setattr(KVPool, "_gather", counted)
    company = RandomCompany(dtype=dtype)
    with torch.inference_mode():
        for batch, layers in company.steps(count):
            step = packed_step(company.pool, batch)
            attention.current.step = step
            for layer in layers:
                found, _ = attention.attention_forward(
                    SimpleNamespace(layer_idx=layer.index),  # type: ignore[arg-type]
                    layer.query,
                    layer.key,
                    layer.value,
                    attention.MaskWindow(layer.rule.window),
                    scaling=layer.rule.scaling,
                    softcap=layer.rule.softcap,
                    s_aux=layer.rule.sinks,
                )
                assert torch.equal(found[0], layer.expected), (batch.spans, layer.rule)
    attention.current.step = None
    assert company.reused > count // 20
    assert gathered.count(True) > 5
    assert gathered.count(False) > count // 50
    assert company.pool.positions == company.positions, "it had to grow"


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("rows_at_once", [1, 3, 5])
def test_a_long_prompts_scores_are_made_in_parts(
    monkeypatch: pytest.MonkeyPatch, rows_at_once: int, with_sinks: bool
) -> None:
    torch.manual_seed(0)
    heads, tokens, length, size = 4, 11, 20, 8
    rows = torch.randn(heads, tokens, size)
    keys, values = torch.randn(2, length, size), torch.randn(2, length, size)
    mask = torch.zeros(tokens, length).masked_fill_(
        torch.ones(tokens, length, dtype=torch.bool).triu(length - tokens + 1), float("-inf")
    )
    sinks = torch.randn(heads) if with_sinks else None
    rule = AttentionRule(softcap=2.0, sinks=sinks)
    whole = attention_by_request._attend_by_hand(rows, keys, values, mask, rule)
    sizes: list[int] = []
    softmax = torch.Tensor.softmax

    def counted(scores: torch.Tensor, *arguments: object, **named: object) -> torch.Tensor:
        sizes.append(scores.shape[1])
        return softmax(scores, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.Tensor, "softmax", counted)
    monkeypatch.setattr(attention_by_request, "SCORES_AT_ONCE", heads * length * rows_at_once)
    parts = attention_by_request._attend_by_hand(rows, keys, values, mask, rule)
    assert max(sizes) == rows_at_once
    torch.testing.assert_close(parts, whole)
