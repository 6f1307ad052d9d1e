from __future__ import annotations

import pytest

from proxy_block.context_window import turn_tokens
from proxy_block.session import Turn

USAGE = {"prompt_tokens": 70, "completion_tokens": 30, "total_tokens": 100}
BEFORE = (Turn("a", "b", 15), Turn("c", "d", 5))


@pytest.mark.parametrize(
    ("reasoning", "usage", "tokens"),
    [
        ("", USAGE, 80),
        ("x" * 90, USAGE, 53),  # nine tenths of the answer's tokens
        ("x" * 90, {"total_tokens": 100}, 80),
        ("x" * 90, {**USAGE, "total_tokens": 21}, 1),
        ("x" * 90, None, 5),
    ],
)
def test_a_turn_counts_without_its_reasoning(
    reasoning: str, usage: dict[str, int] | None, tokens: int
) -> None:
    assert turn_tokens("message", "y" * 10, reasoning, usage, BEFORE) == tokens
