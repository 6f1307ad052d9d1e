"""The parts that generated answers share, whole or as events."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

from runner.master.api.errors import failure_body
from web.deadline import remaining_s
from web.events import DONE, LAST_SEND_S, EventStream, event
from web.events import Events as EncodedEvents

Events = AsyncGenerator[dict[str, Any], None]


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


def event_stream(events: Events, deadline_s: float) -> EventStream:
    """Each document as an event, then `[DONE]`.

    An error after the first is an event of its own, {"error": ...}, without `[DONE]`. The engine
    keeps the deadline, `deadline_s` seconds or the client's own; who has not read LAST_SEND_S later
    what it said is given up.
    """
    deadline = asyncio.get_running_loop().time() + remaining_s(deadline_s) + LAST_SEND_S
    return EventStream(_encoded(events), deadline=deadline)


async def _encoded(events: Events) -> EncodedEvents:
    begun = False
    async with aclosing(events):
        try:
            async for document in events:
                yield event(document)
                begun = True
        except Exception as error:
            if not begun:
                raise
            yield event(failure_body(error))
        else:
            yield DONE
