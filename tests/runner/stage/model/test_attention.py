"""Attention by hand: in parts it is what it is at once."""

from __future__ import annotations

import pytest
import torch

from runner.stage.model import attention


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
    whole = attention._attend_by_hand(rows, keys, values, mask, None, 2.0, sinks)
    sizes: list[int] = []
    softmax = torch.Tensor.softmax

    def counted(scores: torch.Tensor, *arguments: object, **named: object) -> torch.Tensor:
        sizes.append(scores.shape[1])
        return softmax(scores, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.Tensor, "softmax", counted)
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", heads * length * rows_at_once)
    parts = attention._attend_by_hand(rows, keys, values, mask, None, 2.0, sinks)
    assert max(sizes) == rows_at_once
    torch.testing.assert_close(parts, whole)
