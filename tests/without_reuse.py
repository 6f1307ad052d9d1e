"""Answers without what says how much of a prompt was computed before: no property of the answer."""

from __future__ import annotations

from typing import Any

OF_REUSE = "prompt_tokens_details"


def without_reuse(value: Any) -> Any:
    """A JSON document, in a copy."""
    if isinstance(value, dict):
        return {key: without_reuse(item) for key, item in value.items() if key != OF_REUSE}
    return [without_reuse(item) for item in value] if isinstance(value, list) else value
