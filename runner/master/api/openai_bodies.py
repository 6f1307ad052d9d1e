"""The bodies of OpenAI's endpoints, and of AIOS's chat: one of them with a configuration."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, PrivateAttr

from contract.carry import FIELD, Carry, CarryError, parse_field
from contract.faults import MISSING
from contract.generation import openai_parameters
from contract.template_arguments import check_template_arguments
from runner.errors import InvalidField
from runner.master.api.bodies import ConfigurationBody, SamplingBody, Tokens, Whole, whole
from runner.master.api.grammar_fields import (
    AskedGrammar,
    ResponseFormat,
    StructuredOutputs,
    asked_of,
    only_one,
)
from runner.master.api.messages import check_number, conversation
from runner.master.api.tools import AskedTools, asked_tools
from runner.master.api.unserved import CHAT, COMPLETION
from runner.sampling_parameters import MAX_LOGPROBS

MAX_CHOICES = 16
MAX_PROMPTS = 64


def _not_too_many(messages: object) -> object:
    check_number(messages)
    return messages


def _carry(value: object) -> Carry:
    try:
        return parse_field(value)
    except CarryError as error:
        fault = error.fault
        raise InvalidField(fault.path, fault.value, fault.rule) from error
    except RecursionError as error:
        raise InvalidField(FIELD, value, "is nested too deeply") from error


class StreamOptions(BaseModel):
    """`continuous_usage_stats`: each chunk says the usage so far."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class OpenAIBody(SamplingBody):
    """What both endpoints take. With `carry` the answer goes on where a dead process stopped."""

    model: str
    n: Whole = 1
    max_tokens: Tokens | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = Field(default=None, fail_fast=True)
    guided_grammar: str | None = None
    carry: Annotated[Carry | None, PlainValidator(_carry)] = None

    def check(self) -> None:
        if not 1 <= self.n <= MAX_CHOICES:
            raise InvalidField("n", self.n, f"must be an integer from 1 to {MAX_CHOICES}")
        if self.stream_options is not None and not self.stream:
            options = self.stream_options.model_dump()
            raise InvalidField("stream_options", options, "is allowed only with stream true")
        if self.stream_options is not None and self.stream_options.include_obfuscation:
            rule = "is not supported: events are not padded"
            raise InvalidField("stream_options.include_obfuscation", True, rule)

    def asked_grammar(self) -> AskedGrammar | None:
        asked: list[AskedGrammar] = []
        if self.response_format is not None:
            found = self.response_format.asked("response_format")
            asked += [] if found is None else [found]
        if self.structured_outputs is not None:
            asked.append(self.structured_outputs.asked("structured_outputs"))
        asked += asked_of(
            json_schema=("guided_json", self.guided_json),
            regex=("guided_regex", self.guided_regex),
            choice=("guided_choice", self.guided_choice),
            ebnf=("guided_grammar", self.guided_grammar),
        )
        return only_one(asked)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        options = self.stream_options
        return options is not None and bool(options.continuous_usage_stats)


class CompletionBody(OpenAIBody):
    unserved = COMPLETION
    usual_tokens = 16
    prompt: Any
    echo: bool = False
    # With echo the prompt alone is an answer.
    max_tokens: Annotated[int, Field(ge=0), BeforeValidator(whole)] | None = None
    logprobs: Whole | None = None

    def check(self) -> None:
        super().check()
        if self.max_tokens == 0 and not self.echo:
            raise InvalidField("max_tokens", 0, "must be at least 1 without echo")
        if self.logprobs is not None:
            _check_alternatives("logprobs", self.logprobs)

    @property
    def alternatives(self) -> int:
        return -1 if self.logprobs is None else self.logprobs

    def prompts(self) -> list[str | list[int]]:
        """One or several prompts, each a text or token ids; raises InvalidField."""
        prompt = self.prompt
        rule = (
            f"must be a string, a list of token ids, or a list of up to {MAX_PROMPTS} of either, "
            "none of them empty"
        )
        prompts = prompt if isinstance(prompt, list) and not _are_ids(prompt) else [prompt]
        if not 1 <= len(prompts) <= MAX_PROMPTS:
            raise InvalidField("prompt", prompt, rule)
        for item in prompts:
            if not (isinstance(item, str) or _are_ids(item)) or not item:
                raise InvalidField("prompt", item, rule)
        return prompts


class ChatBody(OpenAIBody):
    unserved = CHAT
    token_fields = ("max_completion_tokens", "max_tokens")
    messages: Annotated[list[dict[str, Any]], Field(fail_fast=True), BeforeValidator(_not_too_many)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool = False
    top_logprobs: Whole | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    _asked_tools: AskedTools | None = PrivateAttr(default=None)

    def check(self) -> None:
        super().check()
        if self.top_logprobs is not None:
            _check_alternatives("top_logprobs", self.top_logprobs)
            if self.top_logprobs and not self.logprobs:
                rule = "is allowed only with logprobs true"
                raise InvalidField("top_logprobs", self.top_logprobs, rule)
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            rule = "must not be given beside max_completion_tokens, its newer name"
            raise InvalidField("max_tokens", self.max_tokens, rule)
        _check_template_arguments(self.chat_template_kwargs)
        self._asked_tools = asked_tools(self.tools, self.tool_choice, self.parallel_tool_calls)

    @property
    def asked_tools(self) -> AskedTools | None:
        """None without any."""
        return self._asked_tools

    @property
    def alternatives(self) -> int:
        return (self.top_logprobs or 0) if self.logprobs else -1

    def asked_grammar(self) -> AskedGrammar | None:
        asked, tools = super().asked_grammar(), self.asked_tools
        if asked is not None and tools is not None and tools.may_call:
            rule = (
                "must not be given beside tools: an answer that is held to a form calls nothing; "
                'ask with tool_choice "none"'
            )
            raise InvalidField(asked.field, MISSING, rule)
        return asked

    def conversation(self) -> list[dict[str, Any]]:
        """The messages with content as text; raises InvalidField naming the one that is wrong."""
        return conversation(self.messages)


class AiosChatBody(ChatBody):
    """POST /v1/chat/, AIOS's. The request's own fields go before those of generation_config; the
    model may be left out."""

    model: str = ""
    enable_streaming: bool | None = None
    generation_config: ConfigurationBody | None = None

    def check(self) -> None:
        if self.enable_streaming is not None:
            if self.stream and not self.enable_streaming:
                rule = "must not be false where stream, the same, is true"
                raise InvalidField("enable_streaming", self.enable_streaming, rule)
            self.stream = self.enable_streaming
        config = {} if self.generation_config is None else self.generation_config.model_dump()
        if self.max_completion_tokens is not None:
            config["max_new_tokens"] = None
        for name, value in openai_parameters(config).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        super().check()


def _are_ids(value: object) -> bool:
    """Whether this is one prompt as token ids; an empty list is none."""
    return (
        isinstance(value, list) and bool(value) and set(map(type, value)) == {int}  # bool is none
    )


def _check_template_arguments(arguments: dict[str, Any] | None) -> None:
    try:
        check_template_arguments(arguments or {})
    except ValueError as error:
        raise InvalidField("chat_template_kwargs", arguments, str(error)) from error


def _check_alternatives(field: str, value: int) -> None:
    if not 0 <= value <= MAX_LOGPROBS:
        raise InvalidField(field, value, f"must be an integer from 0 to {MAX_LOGPROBS}")
