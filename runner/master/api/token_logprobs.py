"""Log probabilities in OpenAI's two forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runner.master.engine.requests import TokenEvent
from runner.master.text.model_text import TokenBytes

# OpenAI's documented stand-in for "so unlikely that it has no number"; JSON has no infinity.
_LEAST = -9999.0


def chat_logprobs(events: Sequence[TokenEvent], token_bytes: TokenBytes) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion: one entry for each token, best first."""
    return {
        "content": [
            {
                **_chat_entry(event.token_id, event.logprob, token_bytes),
                "top_logprobs": [
                    _chat_entry(token_id, logprob, token_bytes)
                    for token_id, logprob in event.alternatives
                ],
            }
            for event in events
        ],
        "refusal": None,
    }


def completion_logprobs(
    events: Sequence[TokenEvent], token_bytes: TokenBytes, text_offset: int
) -> tuple[dict[str, Any], int]:
    """`choices[].logprobs` of a completion, and the offset where the next tokens go on."""
    tokens, offsets, logprobs, alternatives = [], [], [], []
    for event in events:
        token = _token(event.token_id, token_bytes)
        tokens.append(token)
        offsets.append(text_offset)
        logprobs.append(_finite(event.logprob))
        alternatives.append(
            {
                _token(token_id, token_bytes): _finite(logprob)
                for token_id, logprob in event.alternatives
            }
        )
        text_offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": alternatives if any(alternatives) else None,
        "text_offset": offsets,
    }, text_offset


def _chat_entry(token_id: int, logprob: float | None, token_bytes: TokenBytes) -> dict[str, Any]:
    raw = token_bytes.of(token_id)
    return {
        "token": raw.decode("utf-8", "replace"),
        "logprob": _finite(logprob),
        "bytes": list(raw),
    }


def _token(token_id: int, token_bytes: TokenBytes) -> str:
    return token_bytes.of(token_id).decode("utf-8", "replace")


def _finite(logprob: float | None) -> float:
    return _LEAST if logprob is None or logprob < _LEAST else logprob
