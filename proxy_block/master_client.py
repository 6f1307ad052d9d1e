"""Asking the master: one question with what comes before it, through OpenAI's chat endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contract.specs import ProxySpec
from proxy_block.block_request import Question
from proxy_block.generation_config import openai_parameters
from proxy_block.session import Turn
from web.answer import Answer
from web.carry import Carrier
from web.errors import ApiError
from web.upstream import Upstream

CHAT_PATH = "/v1/chat/completions"


class UpstreamRefused(Exception):
    """The upstream answered with an error; the client gets it as it is."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


@dataclass(frozen=True)
class Reply:
    """`usage` as the upstream counts it, None where it does not."""

    text: str
    usage: dict[str, Any] | None


class Master:
    """`defaults` is the block's generation_config, checked."""

    def __init__(
        self, spec: ProxySpec, defaults: Mapping[str, Any], upstream: Upstream, carrier: Carrier
    ) -> None:
        self._spec, self._defaults, self.upstream = spec, defaults, upstream
        self._carrier = carrier

    def config(self, question: Question) -> dict[str, Any]:
        """The question's generation_config with the block's where it says nothing."""
        return {**self._defaults, **question.generation_config}

    async def ask(
        self, question: Question, system_message: str | None, turns: Sequence[Turn] = ()
    ) -> Reply:
        """`system_message` None takes the block's. Raises UpstreamRefused and ApiError."""
        document = {
            "model": self._spec.deployment_name,
            "messages": self._messages(question.message, system_message, turns),
            **openai_parameters(self.config(question)),
        }
        answer = await self._carrier.ask(self.upstream, CHAT_PATH, document)
        if answer.status != 200:
            raise UpstreamRefused(answer)
        completion = answer.document()
        try:
            text = completion["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError) as error:
            raise ApiError(502, f"{self.upstream.name} answered without a message") from error
        usage = completion.get("usage")
        return Reply(text, usage if isinstance(usage, dict) else None)

    def _messages(
        self, message: str, system_message: str | None, turns: Sequence[Turn]
    ) -> list[dict[str, str]]:
        system = self._spec.system_message if system_message is None else system_message
        messages = [{"role": "system", "content": system}] if system else []
        for turn in turns:
            messages.append({"role": "user", "content": turn.message})
            messages.append({"role": "assistant", "content": turn.reply})
        return [*messages, {"role": "user", "content": message}]
