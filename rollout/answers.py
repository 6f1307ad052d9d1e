"""What a tier says in an answer that is an error."""

from __future__ import annotations

import httpx

_MOST_CHARACTERS = 400


def answered_error(answer: httpx.Response) -> str:
    """The sentence of the error body, or what there is instead."""
    try:
        said = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = answer.text.strip() or f"HTTP {answer.status_code}"
    return " ".join(said.split())[:_MOST_CHARACTERS]
