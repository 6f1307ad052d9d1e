"""One block request: its prompt out of history and message, asked of the master, recorded."""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakValueDictionary

from proxy_block.block_request import COMPLETIONS, BlockData, BlockRequest
from proxy_block.generation_config import GenerationConfig
from proxy_block.session_store import NewTurn, SessionStore, Turn
from service.contract import ProxySpec
from service.error_body import ApiError
from service.upstream import Answer, Upstream

CHAT_PATH = "/v1/chat/completions"
PROMPT_TOO_LONG = "context_length_exceeded"
# For an upstream that reports no usage: about what English text has.
CHARACTERS_PER_TOKEN = 4


class UpstreamRefused(Exception):
    """The upstream answered with an error; the client gets it as it is."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class Conversations:
    """Answers block requests, those of one session one after the other."""

    def __init__(
        self, spec: ProxySpec, defaults: GenerationConfig, master: Upstream, store: SessionStore
    ) -> None:
        self._spec, self._defaults, self._master, self._store = spec, defaults, master, store
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def answer(self, request: BlockRequest) -> dict[str, Any]:
        """The reply's `data`. Raises UpstreamRefused, ApiError and StoreUnavailable."""
        if request.data.mode == COMPLETIONS:
            text, usage = await self._ask(request.data, request.data.system_message, ())
            return {"generated": text, "usage": usage}
        try:
            async with asyncio.timeout(self._spec.request_deadline_s):
                async with self._locks.setdefault(request.session_id, asyncio.Lock()):
                    return await self._chat(request)
        except TimeoutError as error:
            raise self._master.too_late() from error

    def reset(self, session_id: str | None) -> int:
        return self._store.reset(session_id)

    async def _chat(self, request: BlockRequest) -> dict[str, Any]:
        """The turn is written when its reply is complete, never before.

        A history that has outgrown the model loses its older half, as often as needed.
        """
        data, session_id = request.data, request.session_id
        history = self._store.history(session_id)
        given = data.system_message
        system_message = history.system_message if given is None else given
        turns = history.turns
        while True:
            try:
                text, usage = await self._ask(data, system_message, turns)
                break
            except UpstreamRefused as error:
                if not turns or not _is_too_long(error.answer):
                    raise
                turns = turns[(len(turns) + 1) // 2 :]
        tokens = _turn_tokens(data.message, text, usage, turns)
        oldest_kept = turns[0].number if turns else _past(history.turns)
        turn = NewTurn(data.message, text, tokens, oldest_kept)
        self._store.record(session_id, system_message, turn)
        return {"reply": text, "usage": usage}

    async def _ask(
        self, data: BlockData, system_message: str | None, turns: tuple[Turn, ...]
    ) -> tuple[str, dict[str, Any] | None]:
        config = data.generation_config.over(self._defaults)
        document = {
            "model": self._spec.model_name,
            "messages": self._messages(data.message, system_message, turns),
            **config.parameters(),
        }
        answer = await self._master.ask(CHAT_PATH, document)
        if answer.status != 200:
            raise UpstreamRefused(answer)
        completion = answer.document()
        try:
            return completion["choices"][0]["message"]["content"] or "", completion.get("usage")
        except (KeyError, IndexError, TypeError) as error:
            raise ApiError(502, f"{self._master.name} answered without a message") from error

    def _messages(
        self, message: str, system_message: str | None, turns: tuple[Turn, ...]
    ) -> list[dict[str, str]]:
        system = self._spec.system_message if system_message is None else system_message
        messages = [{"role": "system", "content": system}] if system else []
        for turn in turns:
            messages.append({"role": "user", "content": turn.message})
            messages.append({"role": "assistant", "content": turn.reply})
        return [*messages, {"role": "user", "content": message}]


def _is_too_long(answer: Answer) -> bool:
    try:
        return bool(answer.document()["error"]["code"] == PROMPT_TOO_LONG)
    except (ApiError, KeyError, TypeError):
        return False


def _past(turns: tuple[Turn, ...]) -> int:
    """A number beyond all of `turns`."""
    return turns[-1].number + 1 if turns else 0


def _turn_tokens(
    message: str, reply: str, usage: dict[str, Any] | None, turns: tuple[Turn, ...]
) -> int:
    """What this turn adds: the whole conversation's tokens less those of the turns before it."""
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    if isinstance(total, int):
        return max(1, total - sum(turn.tokens for turn in turns))
    return 1 + (len(message) + len(reply)) // CHARACTERS_PER_TOKEN
