"""What of a history goes to the model: as much as fits, with its reasoning where that is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from contract.refusal_codes import PROMPT_TOO_LONG
from proxy_block.session import Turn
from web.answer import Answer
from web.errors import ApiError
from web.remembered import Remembered
from web.upstream import Upstream

# Where nothing was counted: about what English text has.
CHARACTERS_PER_TOKEN = 4
# Left for an answer whose length nobody bounds: a quarter of the model's context, 512 at most.
REPLY_SHARE, REPLY_TOKENS = 4, 512


class ContextWindow:
    """Of what the upstream's model takes; an upstream that does not tell its `max_model_len` says
    so when asked too much."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._model = Remembered(self._ask_model)

    async def keeps_reasoning(self) -> bool:
        """Whether the model gets what it thought before its earlier answers."""
        return (await self._model.get() or {}).get("keeps_reasoning") is True

    async def fitting(
        self, turns: Sequence[Turn], message: str, config: Mapping[str, Any]
    ) -> tuple[Turn, ...]:
        """The youngest turns that, by what was counted of them, fit with message and answer."""
        limit = _limit(await self._model.get() or {})
        if limit is None or not turns:
            return tuple(turns)
        answer = config.get("max_new_tokens", min(REPLY_TOKENS, limit // REPLY_SHARE))
        room = limit - answer - len(message) // CHARACTERS_PER_TOKEN
        kept = len(turns)
        used = sum(turn.tokens for turn in turns)
        while kept and used > room:
            used -= turns[len(turns) - kept].tokens
            kept -= 1
        return tuple(turns[len(turns) - kept :])

    def refused(self) -> None:
        """The upstream refused what fitted: it may have come back with another limit."""
        self._model.doubt()

    async def _ask_model(self) -> dict[str, Any] | None:
        try:
            model = (await self._upstream.get("/v1/models"))["data"][0]
        except (ApiError, KeyError, IndexError, TypeError):
            return None
        return model if isinstance(model, dict) else None


def _limit(model: Mapping[str, Any]) -> int | None:
    found = model.get("max_model_len")
    return found if isinstance(found, int) and found > 0 else None


def is_too_long(answer: Answer) -> bool:
    """Whether the upstream refused a prompt for its length."""
    return bool(answer.error.get("code") == PROMPT_TOO_LONG)


def turn_tokens(
    message: str, reply: str, reasoning: str, usage: Mapping[str, Any] | None, turns: Sequence[Turn]
) -> int:
    """What a turn adds: the whole conversation's tokens less those of the turns before it, and
    less those of the `reasoning`, so far as that stays out of the history."""
    usage = usage or {}
    total, answer = usage.get("total_tokens"), usage.get("completion_tokens")
    if not isinstance(total, int):
        return 1 + (len(message) + len(reply)) // CHARACTERS_PER_TOKEN
    if reasoning and isinstance(answer, int):
        characters = len(reasoning) + len(reply)
        total -= answer * len(reasoning) // characters
    return max(1, total - sum(turn.tokens for turn in turns))
