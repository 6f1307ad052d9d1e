"""What the endpoints share: the model's text, the engine, the defaults, the metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from contract.specs import GroupSpec
from runner.errors import InvalidField, NotServing, PromptTooLong, UnknownModel
from runner.master.api.bodies import SamplingBody
from runner.master.api.defaults import GenerationDefaults
from runner.master.engine.engine import Engine
from runner.master.engine.requests import GenerationRequest
from runner.master.metrics import Metrics
from runner.master.text.choice import TextRequest
from runner.master.text.model_text import ModelText
from runner.master.text.streams import Pieces, text_pieces
from runner.sampling_parameters import SamplingParameters
from web.deadline import remaining_s

# Shorter texts are tokenized faster than a thread takes them over.
_LONG_TEXT = 10_000
_AROUND_MESSAGE = 32  # characters of a usual template's markers


@dataclass
class MasterService:
    spec: GroupSpec
    engine: Engine
    text: ModelText
    defaults: GenerationDefaults
    metrics: Metrics
    created: int = field(default_factory=lambda: int(time.time()))

    def check_model(self, name: str) -> None:
        """Served are the model's name and the deployment's, its alias; raises UnknownModel."""
        served = (self.spec.model_name, self.spec.deployment_name)
        if name not in served:
            rule = f"is not served here; served are {served[0]!r} and, the same, {served[1]!r}"
            raise UnknownModel("model", name, rule)

    async def prompt_ids(self, field_name: str, prompt: str | list[int]) -> tuple[int, ...]:
        """The ids of a bare prompt; raises InvalidField, PromptTooLong, NotServing."""
        if isinstance(prompt, str):
            self._check_length(field_name, len(prompt))
            if len(prompt) < _LONG_TEXT:
                return self.text.encode_prompt(prompt)
            return await asyncio.to_thread(self.text.encode_prompt, prompt)
        self.room(field_name, prompt)
        self.check_ids(field_name, prompt)
        return tuple(prompt)

    async def chat_ids(self, messages: Sequence[dict[str, Any]]) -> tuple[int, ...]:
        """The ids of a conversation; raises InvalidField, PromptTooLong."""
        length = sum(len(message["content"]) for message in messages)
        self._check_length("messages", length)
        if length + _AROUND_MESSAGE * len(messages) < _LONG_TEXT:
            return self.text.encode_chat(messages)
        return await asyncio.to_thread(self.text.encode_chat, messages)

    def check_messages(self, count: int) -> None:
        """Raises PromptTooLong for more messages than tokens: each becomes one at least."""
        limit = self.engine.max_model_len
        if limit is not None and count > limit:
            rule = f"must be fewer than the model's context of {limit} tokens"
            raise PromptTooLong("messages", f"{count} messages", rule)

    def _check_length(self, field_name: str, characters: int) -> None:
        """Raises PromptTooLong for a text too long whatever its tokens: making them costs seconds.

        A context of nothing but longest tokens is the bound. `room` counts what passes it.
        """
        limit = self.engine.max_model_len
        if limit is not None and characters > limit * self.text.longest_token:
            rule = f"is over the model's context of {limit} tokens, whatever they are"
            raise PromptTooLong(field_name, f"{characters} characters", rule)

    def check_ids(self, field_name: str, ids: Sequence[int]) -> None:
        """Raises InvalidField for an id that the vocabulary does not have."""
        vocabulary = self.text.vocabulary_size
        for token_id in ids:
            if not 0 <= token_id < vocabulary:
                rule = f"must be a token id below the vocabulary's size {vocabulary}"
                raise InvalidField(field_name, token_id, rule)

    def room(self, field_name: str, prompt_ids: Sequence[int]) -> int:
        """How many tokens may follow the prompt; raises PromptTooLong, InvalidField, NotServing."""
        limit = self.engine.max_model_len
        if limit is None:
            raise NotServing(f"the rank group has not formed yet: {self.engine.reason}")
        if not prompt_ids:
            raise InvalidField(field_name, "", "must have at least one token")
        if len(prompt_ids) >= limit:
            rule = f"must be shorter than the model's context of {limit} tokens"
            raise PromptTooLong(field_name, f"{len(prompt_ids)} tokens", rule)
        return limit - len(prompt_ids)

    def sampling(
        self, body: SamplingBody, *, do_sample: bool | None = None, logprobs: int = -1
    ) -> SamplingParameters:
        """The request's sampling parameters over the defaults; raises InvalidField."""
        sampling = self.defaults.sampling(
            body, self.text.eos_ids, do_sample=do_sample, logprobs=logprobs
        )
        self.check_ids("logit_bias", list(sampling.logit_bias))
        return sampling

    def choices(
        self,
        prompt_ids: tuple[int, ...],
        max_new_tokens: int,
        sampling: SamplingParameters,
        stop: tuple[str, ...],
        *,
        count: int = 1,
        continues_prompt: bool = False,
        first_index: int = 0,
    ) -> list[TextRequest]:
        """`count` choices for one prompt, each with random numbers of its own.

        Raises what the engine refuses without trying, so that it is refused before a stream begins.
        """
        requests = [
            TextRequest(
                GenerationRequest(
                    prompt_ids,
                    max_new_tokens,
                    sampling,
                    choice=choice,
                    deadline_s=remaining_s(self.spec.request_deadline_s),
                ),
                stop,
                continues_prompt,
                first_index + choice,
            )
            for choice in range(count)
        ]
        self.engine.validate(requests[0].generation)
        return requests

    def pieces(self, requests: Sequence[TextRequest]) -> Pieces:
        """The text of all choices as it comes."""
        return text_pieces(self.engine, self.text, self.metrics, requests)


def service_of(request: Request) -> MasterService:
    service = request.app.state.service
    assert isinstance(service, MasterService)
    return service
