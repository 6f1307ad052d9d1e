"""The parts that the answers of both OpenAI endpoints share."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from typing import Any


def answer_head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """id, object, created and model: equal in all chunks of one stream."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class StreamUsage:
    """Counts a stream's tokens. With include_usage each chunk says `usage: null`, and a last one
    without choices says the sum."""

    def __init__(self, include: bool, prompt_tokens: int) -> None:
        self._include, self._prompt_tokens = include, prompt_tokens
        self._tokens: dict[int, int] = {}

    def chunk(self, head: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
        document = {**head, "choices": [choice]}
        if self._include:
            document["usage"] = None
        return document

    def count(self, index: int, tokens: int) -> None:
        self._tokens[index] = tokens

    def last(self, head: dict[str, Any]) -> Iterable[dict[str, Any]]:
        if self._include:
            total = sum(self._tokens.values())
            yield {**head, "choices": [], "usage": usage(self._prompt_tokens, total)}
