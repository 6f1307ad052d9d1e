"""Asking the master, through OpenAI's endpoints: one question with what comes before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contract.generation import openai_parameters
from contract.refusal_codes import NO_CHAT_TEMPLATE, PROMPT_TOO_LONG
from contract.specs import ProxySpec
from proxy_block.block_request import Question
from proxy_block.session import Turn
from web.answer import Answer
from web.carry import Carrier
from web.errors import ApiError, invalid_field
from web.upstream import Upstream

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
# The length of a text that is continued where nobody says one: OpenAI's own default is 16 tokens.
CONTINUED_TOKENS = 512


class UpstreamRefused(Exception):
    """The upstream answered with an error; the client gets it as it is."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


@dataclass(frozen=True)
class Reply:
    """`usage` as the upstream counts it, None where it does not. `reasoning` is what a reasoning
    model thought before its text, "" for none."""

    text: str
    usage: dict[str, Any] | None
    reasoning: str = ""


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
        document = self.with_defaults(
            {
                "model": self._spec.deployment_name,
                "messages": self._messages(question.message, system_message, turns),
                **openai_parameters(self.config(question)),
            }
        )
        completion = await self._ask(CHAT_PATH, document)
        return self._reply(completion, _of_chat)

    async def complete(self, question: Question) -> Reply:
        """Without a history: answered as a chat of this one message; by a model that has no chat
        template continued. Raises UpstreamRefused and ApiError."""
        try:
            return await self.ask(question, question.system_message)
        except UpstreamRefused as refused:
            if refused.answer.error.get("code") != NO_CHAT_TEMPLATE:
                raise
        if question.system_message:
            rule = "has no place: the model has no chat template, it continues the message"
            path = f"{question.path}.system_message"
            raise invalid_field(path, rule, question.system_message)
        document = {
            "model": self._spec.deployment_name,
            "prompt": question.message,
            **openai_parameters(self.config(question)),
        }
        return self._reply(await self._continued(document), _of_completion)

    def with_defaults(self, document: dict[str, Any]) -> dict[str, Any]:
        """A body of CHAT_PATH with the block's chat_template_kwargs where it has none of its own
        of that name."""
        defaults = self._spec.chat_template_kwargs
        own = document.get("chat_template_kwargs")
        if not defaults or not isinstance(own, dict | None):
            return document
        return {**document, "chat_template_kwargs": {**defaults, **(own or {})}}

    async def _continued(self, document: dict[str, Any]) -> dict[str, Any]:
        if "max_tokens" in document:
            return await self._ask(COMPLETIONS_PATH, document)
        try:
            bounded = {**document, "max_tokens": CONTINUED_TOKENS}
            return await self._ask(COMPLETIONS_PATH, bounded)
        except UpstreamRefused as refused:
            if refused.answer.error.get("code") != PROMPT_TOO_LONG:
                raise
        return await self._ask(COMPLETIONS_PATH, document)

    async def _ask(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        answer = await self._carrier.ask(self.upstream, path, document)
        if answer.status != 200:
            raise UpstreamRefused(answer)
        return answer.document()

    def _reply(
        self, completion: dict[str, Any], texts_of: Callable[[Any], tuple[str, str]]
    ) -> Reply:
        try:
            text, reasoning = texts_of(completion["choices"][0])
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ApiError(502, f"{self.upstream.name} answered without a message") from error
        usage = completion.get("usage")
        return Reply(text, usage if isinstance(usage, dict) else None, reasoning)

    def _messages(
        self, message: str, system_message: str | None, turns: Sequence[Turn]
    ) -> list[dict[str, str]]:
        system = self._spec.system_message if system_message is None else system_message
        messages = [{"role": "system", "content": system}] if system else []
        for turn in turns:
            messages.append({"role": "user", "content": turn.message})
            thought = {"reasoning_content": turn.reasoning} if turn.reasoning else {}
            messages.append({"role": "assistant", "content": turn.reply, **thought})
        return [*messages, {"role": "user", "content": message}]


def _of_chat(choice: Any) -> tuple[str, str]:
    message = choice["message"]
    return message["content"] or "", message.get("reasoning_content") or ""


def _of_completion(choice: Any) -> tuple[str, str]:
    return choice["text"] or "", ""
