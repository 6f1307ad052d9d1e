"""Text in, checked requests out: what is wrong with a request is refused here, and nowhere later.

In one order: the model's name, the parameters, no place in the queue, the prompt, the answer's
length. Only what the stages say of themselves is left for the engine to check.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import TypeAlias, TypeVar

from contract.faults import MISSING
from contract.generation import SEED_LIMIT
from contract.specs import GroupSpec
from runner.errors import DeadlineExceeded, InvalidField, PromptTooLong, UnknownModel
from runner.grammar import Grammar
from runner.master.api.bodies import GenerateBody
from runner.master.api.carried import (
    carried_requests,
    carried_seed,
    check_beginning,
    prompt_digest,
)
from runner.master.api.chat_text import marks_of
from runner.master.api.defaults import GenerationDefaults
from runner.master.api.forced_calls import forced_calls, forced_schemas, grammar_after
from runner.master.api.grammar_check import GrammarCheck
from runner.master.api.grammar_fields import AskedGrammar
from runner.master.api.messages import characters_of
from runner.master.api.openai_bodies import ChatBody, CompletionBody
from runner.master.api.tools import AskedTools
from runner.master.engine.engine import Engine
from runner.master.engine.requests import GenerationRequest
from runner.master.text.choice import TextRequest
from runner.master.text.model_text import ModelText
from runner.sampling_parameters import SamplingParameters
from web.deadline import remaining_s
from web.domain import current_domain
from web.request_id import current_request_id

Source = TypeVar("Source")
Body: TypeAlias = GenerateBody | CompletionBody | ChatBody
# With the strings that end the text.
Parameters: TypeAlias = tuple[SamplingParameters, tuple[str, ...]]
# Shorter texts are tokenized faster than a thread takes them over.
_LONG_TEXT = 10_000
_AROUND_MESSAGE = 32  # characters of a usual template's markers


class Prompts:
    """Judges every request of one master; `defaults` are what a request that does not say gets."""

    def __init__(
        self,
        spec: GroupSpec,
        engine: Engine,
        text: ModelText,
        defaults: GenerationDefaults,
        grammars: GrammarCheck,
    ) -> None:
        self._spec, self._engine, self._text, self._defaults = spec, engine, text, defaults
        self._grammars = grammars

    def check_model(self, name: str) -> None:
        """Served are the model's name and the deployment's, its alias; raises UnknownModel."""
        served = (self._spec.model_name, self._spec.deployment_name)
        if name not in served:
            rule = f"is not served here; served are {served[0]!r} and, the same, {served[1]!r}"
            raise UnknownModel("model", name, rule)

    async def to_complete(self, body: GenerateBody | CompletionBody) -> list[TextRequest]:
        """`body.n` requests for each prompt, in order.

        Raises UnknownModel, InvalidField, NotServing, EngineFull, PromptTooLong; ModelChanged where
        a request that is carried cannot go on.
        """
        if isinstance(body, CompletionBody):
            self.check_model(body.model)
        parameters, prompts = self._parameters(body), body.prompts()
        self._check_place(body, len(prompts) * body.n)
        grammar = await self._grammar(body, parameters[0])
        requests: list[TextRequest] = []
        given: Counter[tuple[int, ...]] = Counter()
        for prompt in prompts:
            ids = await self._prompt_ids(prompt)
            requests += self._requests(
                body, "prompt", ids, parameters, grammar, len(requests), body.n * given[ids]
            )
            given[ids] += 1
        return await self._carried(body, requests)

    async def _grammar(self, body: Body, sampling: SamplingParameters) -> Grammar | None:
        """What the answer is held to; raises InvalidField, DeadlineExceeded."""
        asked, schemas = body.asked_grammar(), dict[str, AskedGrammar]()
        tools = body.asked_tools if isinstance(body, ChatBody) else None
        if tools is not None and tools.must_call and self._text.calls is not None:
            schemas = forced_schemas(tools)
            asked = forced_calls(self._text.calls, tools, schemas)
        if asked is None:
            return None
        if body.ignore_eos:
            rule = f"must be false beside {asked.field}: the form says where the answer ends"
            raise InvalidField("ignore_eos", True, rule)
        known = self._engine.vocabulary_size
        if not any(token_id < known for token_id in sampling.stop_token_ids):
            rule = "needs a model that has a token for the end of a text: ask with stop_token_ids"
            raise InvalidField(asked.field, MISSING, rule)
        limit_s = remaining_s(self._spec.request_deadline_s)
        try:
            async with asyncio.timeout(limit_s):
                for schema in schemas.values():  # each for itself, so that its path is told
                    await self._grammars.check(schema, current_domain())
                return await self._grammars.check(asked, current_domain())
        except TimeoutError:
            why = f"not begun within its deadline of {limit_s:g} s: other forms are judged"
            raise DeadlineExceeded(why) from None

    async def to_answer(self, body: ChatBody) -> list[TextRequest]:
        """`body.n` requests for the conversation; raises what `to_complete` does."""
        self.check_model(body.model)
        parameters = self._parameters(body)
        self._check_place(body, body.n)
        tools = body.asked_tools
        if tools is not None:
            self._check_tools(tools)
        grammar = await self._grammar(body, parameters[0])
        if self._engine.max_model_len is not None:
            # Each message becomes one token at least.
            self._check_length("messages", len(body.messages), "messages", self._engine.context)
        messages = body.conversation()
        around = _AROUND_MESSAGE * len(messages)
        encode = partial(self._text.encode_chat, arguments=body.chat_template_kwargs or {})
        if tools is not None:
            encode = partial(encode, tools=tools.tools)
            around += tools.characters
        ids = await self._encoded("messages", encode, messages, characters_of(messages), around)
        if grammar is not None:
            grammar = grammar_after(grammar, self._text, tools, ids)
        requests = self._requests(body, "messages", ids, parameters, grammar)
        return await self._carried(body, requests)

    def _check_tools(self, tools: AskedTools) -> None:
        if tools.may_call and self._text.calls is None:
            rule = (
                "is not served with this model: its chat template names no form of calls that is "
                'known here; with tool_choice "none" the answer is text alone'
            )
            raise InvalidField("tools", f"{len(tools.tools)} tools", rule)
        limit = self._engine.context * self._text.longest_token
        self._check_length("tools", tools.characters, "characters", limit)

    def _parameters(self, body: Body) -> Parameters:
        """All that is refused before the prompt is made into tokens."""
        ends = self._text.chat_eos_ids if isinstance(body, ChatBody) else self._text.eos_ids
        sampling = self._defaults.sampling(body, ends)
        self._check_ids("logit_bias", sampling.logit_bias)
        sampling = replace(sampling, seed=_seed(body, sampling.seed))
        return sampling, self._defaults.stop(body.stop)

    def _check_place(self, body: Body, choices: int) -> None:
        carry = body.carry
        self._engine.check_place(choices, domain=current_domain(), carried=carry is not None)
        if carry is not None:
            check_beginning(carry, self._engine.model_commit, choices)

    async def _carried(self, body: Body, requests: list[TextRequest]) -> list[TextRequest]:
        """The requests as they are, or so that they go on where a dead process stopped."""
        if isinstance(body, GenerateBody) or body.carry is None:
            return requests
        return await carried_requests(
            body.carry,
            requests,
            self._text,
            prompt=prompt_digest(requests, body.n),
            vocabulary_size=self._engine.vocabulary_size,
            # Log probabilities of what came before are not to be had otherwise.
            from_start=body.alternatives >= 0 and not body.stream,
        )

    async def _prompt_ids(self, prompt: str | list[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return await self._encoded("prompt", self._text.encode_prompt, prompt, len(prompt))
        self._check_ids("prompt", prompt)
        return tuple(prompt)

    async def _encoded(
        self,
        field: str,
        encode: Callable[[Source], tuple[int, ...]],
        source: Source,
        characters: int,
        around: int = 0,
    ) -> tuple[int, ...]:
        """The ids of so many characters and those `around` them.

        A text too long whatever its tokens is refused before they are made, which costs seconds: a
        context of nothing but longest tokens is the bound.
        """
        limit = self._engine.context * self._text.longest_token
        self._check_length(field, characters, "characters", limit)
        if characters + around < _LONG_TEXT:
            return encode(source)
        return await asyncio.to_thread(encode, source)

    def _requests(
        self,
        body: Body,
        field: str,
        ids: tuple[int, ...],
        parameters: Parameters,
        grammar: Grammar | None,
        first_index: int = 0,
        first_choice: int = 0,
    ) -> list[TextRequest]:
        """`body.n` choices for one prompt, each with random numbers of its own, also where the
        same prompt has some already: `first_choice` of them."""
        if not ids:
            raise InvalidField(field, "", "must have at least one token")
        if fault := self._text.beyond(self._engine.vocabulary_size, ids):
            raise InvalidField(field, f"{len(ids)} tokens", f"{fault}: leave it out")
        _, asked = body.asked_tokens()
        least = 1 if asked is None else min(asked, 1)
        self._check_length(field, len(ids), "tokens", self._engine.context - least)
        most_tokens = self._most_tokens(body, self._engine.context - len(ids))
        sampling, stop = parameters
        is_chat = isinstance(body, ChatBody)
        marks = marks_of(self._text, body.asked_tools) if isinstance(body, ChatBody) else ()
        deadline_s = remaining_s(self._spec.request_deadline_s)
        return [
            TextRequest(
                GenerationRequest(
                    ids,
                    most_tokens,
                    sampling,
                    first_choice + place,
                    deadline_s,
                    current_request_id() or "",
                    echo=isinstance(body, CompletionBody) and body.echo,
                    domain=current_domain(),
                    grammar=grammar,
                ),
                stop,
                continues_prompt=not is_chat,
                index=first_index + place,
                marks=frozenset(marks),
            )
            for place in range(body.n)
        ]

    def _most_tokens(self, body: Body, room: int) -> int:
        """How many tokens to generate. What the request asks for must fit into the `room` that
        the prompt leaves; a default is cut to it."""
        field, asked = body.asked_tokens()
        if asked is None:
            default = self._defaults.max_new_tokens(body.usual_tokens)
            return room if default is None else min(default, room)
        if asked > room:
            rule = f"must be at most {room}, what the prompt leaves of the model's context"
            raise PromptTooLong(field, asked, rule)
        return asked

    def _check_length(self, field: str, length: int, unit: str, limit: int) -> None:
        if length > limit:
            rule = f"is beyond the model's context of {self._engine.context} tokens"
            raise PromptTooLong(field, f"{length} {unit}", rule)

    def _check_ids(self, field: str, ids: Collection[int]) -> None:
        if not ids:
            return
        vocabulary = min(self._text.vocabulary_size, self._engine.vocabulary_size)
        for token_id in (min(ids), max(ids)):
            if not 0 <= token_id < vocabulary:
                rule = f"must be a token id below the vocabulary's size {vocabulary}"
                raise InvalidField(field, token_id, rule)


def _seed(body: Body, seed: int | None) -> int:
    """Of all choices of a request: the one that it asks for, that was told when it began, that is
    configured (`seed`), or one that is drawn now."""
    if body.carry is not None:
        return carried_seed(body.carry, seed if body.names_seed else None)
    return secrets.randbelow(SEED_LIMIT) if seed is None else seed
