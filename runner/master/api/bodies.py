"""The bodies that the endpoints take, checked; what is wrong is refused by the field's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contract.faults import faults_of
from contract.generation import MAX_STOP_LENGTH, MAX_STOP_STRINGS
from runner.errors import InvalidField
from runner.sampling_parameters import MAX_LOGIT_BIAS_ENTRIES, MAX_LOGPROBS

# An object's keys, the body's own too: pydantic makes a fault of each unknown one, and a million
# of those cost seconds and gigabytes. No field of ours needs more.
MAX_KEYS = MAX_LOGIT_BIAS_ENTRIES
MAX_CHOICES = 16
MAX_PROMPTS = 64
_SHOWN_FAULTS = 4
Tokens: TypeAlias = Annotated[int, Field(ge=1)]


class RequestBody(BaseModel):
    """A JSON object whose fields are all known; null stands for "not given", as in OpenAI's API.

    `ignored` fields are accepted because clients send them and nothing depends on them.
    `refused` fields are known but not supported: only the values listed with the rule pass.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    ignored: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {}

    def check(self) -> None:
        """The rules that pydantic does not know; raises InvalidField."""


class GenerationBody(RequestBody):
    """What may be asked for and set as a default; None where nobody says. SamplingParameters
    checks the bounds."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Any = None


class SamplingBody(GenerationBody):
    """The fields that every generating endpoint takes."""

    stop_token_ids: list[int] | None = Field(default=None, fail_fast=True)
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool = False

    # Which fields say how many tokens to generate, and how many when nobody says (None: all that
    # there is room for).
    token_fields: ClassVar[tuple[str, ...]] = ("max_tokens",)
    usual_tokens: ClassVar[int | None] = None

    @property
    def alternatives(self) -> int:
        """SamplingParameters.logprobs."""
        return -1

    def asked_tokens(self) -> tuple[str, int | None]:
        """The field that says how many tokens to generate, and what it says."""
        return next(iter(self.given(*self.token_fields).items()), (self.token_fields[0], None))

    def given(self, *names: str) -> dict[str, Any]:
        """The named fields that the request sets."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class ConfigurationBody(GenerationBody):
    """POST /set_config: the defaults that may be set. null puts one back to the model's own."""

    max_new_tokens: Tokens | None = None
    do_sample: bool | None = None


class GenerateBody(SamplingBody):
    """`do_sample` false means temperature 0; omitted, a named temperature, top_k, top_p or min_p
    means true."""

    token_fields = ("max_new_tokens",)
    usual_tokens = 2048
    n: ClassVar[int] = 1
    prompt: str
    max_new_tokens: Tokens | None = None
    do_sample: bool | None = None
    enable_streaming: bool = False

    def check(self) -> None:
        if not self.prompt:
            raise InvalidField("prompt", self.prompt, "must not be empty")

    def prompts(self) -> list[str | list[int]]:
        return [self.prompt]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    include_obfuscation: bool = False


class OpenAIBody(SamplingBody):
    """What both endpoints take. `ignored` is what the tiers in front make use of: whom a request
    is for, and which belong together."""

    ignored = frozenset({"user"})
    model: str
    n: int = 1
    max_tokens: Tokens | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    def check(self) -> None:
        if not 1 <= self.n <= MAX_CHOICES:
            raise InvalidField("n", self.n, f"must be an integer from 1 to {MAX_CHOICES}")
        if self.stream_options is not None and not self.stream:
            options = self.stream_options.model_dump()
            raise InvalidField("stream_options", options, "is allowed only with stream true")
        if self.stream_options is not None and self.stream_options.include_obfuscation:
            rule = "is not supported: events are not padded"
            raise InvalidField("stream_options.include_obfuscation", True, rule)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(OpenAIBody):
    refused = {
        "suffix": ((), "is not supported: the text is written from left to right"),
        "best_of": ((1,), "is not supported: ask for n choices"),
    }
    usual_tokens = 16
    prompt: Any
    echo: bool = False
    logprobs: int | None = None

    def check(self) -> None:
        super().check()
        if self.echo and self.logprobs is not None:
            rule = "is not supported with echo: the prompt has no log probabilities here"
            raise InvalidField("logprobs", self.logprobs, rule)
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
    ignored = frozenset({"user", "safety_identifier", "prompt_cache_key"})
    _no_tools: ClassVar[str] = "is not supported: this server does not call tools"
    _no_store: ClassVar[str] = "is not supported: answers are not stored"
    _no_cache: ClassVar[str] = "is not supported: prompts are not kept for later requests"
    refused = {
        "tools": (([],), _no_tools),
        "tool_choice": (("none",), _no_tools),
        "functions": (([],), _no_tools),
        "function_call": (("none",), _no_tools),
        "parallel_tool_calls": ((), _no_tools),
        "store": ((False,), _no_store),
        "metadata": (({},), _no_store),
        "prompt_cache_retention": ((), _no_cache),
        "prompt_cache_options": ((), _no_cache),
        "service_tier": (("auto", "default"), "is not supported: there is one tier"),
        "moderation": ((), "is not supported: nothing is moderated here"),
        "response_format": (({"type": "text"},), 'is not supported: only {"type": "text"} is'),
        "modalities": ((["text"],), 'is not supported: only ["text"] is'),
        "audio": ((), "is not supported: text only"),
        "prediction": ((), "is not supported"),
        "reasoning_effort": ((), "is not supported"),
        "verbosity": ((), "is not supported"),
        "web_search_options": ((), "is not supported: this server does not search"),
    }
    token_fields = ("max_completion_tokens", "max_tokens")
    messages: list[dict[str, Any]] = Field(fail_fast=True)
    max_completion_tokens: Tokens | None = None
    logprobs: bool = False
    top_logprobs: int | None = None

    def check(self) -> None:
        super().check()
        if self.top_logprobs is not None:
            _check_alternatives("top_logprobs", self.top_logprobs)
            if not self.logprobs:
                rule = "is allowed only with logprobs true"
                raise InvalidField("top_logprobs", self.top_logprobs, rule)
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            rule = "must not be given beside max_completion_tokens, its newer name"
            raise InvalidField("max_tokens", self.max_tokens, rule)

    @property
    def alternatives(self) -> int:
        return (self.top_logprobs or 0) if self.logprobs else -1

    def conversation(self) -> list[dict[str, Any]]:
        """The messages with content as text; raises InvalidField naming the one that is wrong."""
        if not self.messages:
            raise InvalidField("messages", [], "must have at least one message")
        return [_message(f"messages[{place}]", item) for place, item in enumerate(self.messages)]


Body = TypeVar("Body", bound=RequestBody)


def parse_body(kind: type[Body], document: Mapping[str, Any]) -> Body:
    """`document` as `kind`; raises InvalidField naming every field, value and rule it breaks."""
    given: dict[str, Any] = {}
    _check_keys("body", document)
    for name, value in document.items():
        _check_keys(name, value)
        if value is None or name in kind.ignored:
            if name not in kind.ignored | kind.refused.keys() | kind.model_fields.keys():
                raise InvalidField(name, value, "is not a field of this request")
            continue
        if name in kind.refused:
            harmless, rule = kind.refused[name]
            if value not in harmless:
                raise InvalidField(name, value, rule)
            continue
        given[name] = value
    try:
        body = kind.model_validate(given)
    except ValidationError as error:
        first, *others = faults_of(error, whole="body")[:_SHOWN_FAULTS]
        rule = "; ".join([first.rule, *(f"{fault.path}: {fault.rule}" for fault in others)])
        raise InvalidField(first.path, first.value, rule) from error
    body.check()
    return body


def stop_strings(stop: object) -> tuple[str, ...]:
    """The stop strings of a request (a string, a list of strings or None); raises InvalidField."""
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or len(stops) > MAX_STOP_STRINGS:
        rule = f"must be a string or a list of at most {MAX_STOP_STRINGS} strings"
        raise InvalidField("stop", stop, rule)
    for item in stops:
        if not isinstance(item, str) or not 0 < len(item) <= MAX_STOP_LENGTH:
            rule = f"must be a string of 1 to {MAX_STOP_LENGTH} characters"
            raise InvalidField("stop", item, rule)
    return tuple(stops)


def _check_keys(name: str, value: object) -> None:
    if isinstance(value, Mapping) and len(value) > MAX_KEYS:
        raise InvalidField(name, f"{len(value)} keys", f"must have at most {MAX_KEYS} keys")


def _message(field: str, message: dict[str, Any]) -> dict[str, Any]:
    known = ("role", "content", "name", "refusal", "reasoning_content", "tool_calls")
    for name, value in message.items():
        if name not in known:
            raise InvalidField(f"{field}.{name}", value, "is not a field of a message")
        if name in ("tool_calls", "refusal") and value:
            raise InvalidField(f"{field}.{name}", value, "is not supported")
        if name in ("name", "reasoning_content") and not isinstance(value, str | None):
            raise InvalidField(f"{field}.{name}", value, "must be a string")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        rule = 'must be a string such as "system", "user" or "assistant"'
        raise InvalidField(f"{field}.role", role, rule)
    text = _content(f"{field}.content", message.get("content"))
    names = [name for name in ("name", "reasoning_content") if name in message]
    kept: dict[str, Any] = {name: message[name] for name in names}
    # OpenAI's newer word for system; the templates of open models know only the older.
    return {"role": "system" if role == "developer" else role, "content": text, **kept}


def _content(field: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise InvalidField(field, content, "must be a string or a list of parts of type text")
    texts: list[str] = []
    for place, part in enumerate(content):
        path = f"{field}[{place}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            raise InvalidField(path, part, 'must be {"type": "text", "text": ...}: text only')
        if not isinstance(part.get("text"), str):
            raise InvalidField(f"{path}.text", part.get("text"), "must be a string")
        texts.append(part["text"])
    return "".join(texts)


def _are_ids(value: object) -> bool:
    """Whether this is one prompt as token ids; an empty list is none."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    )


def _check_alternatives(field: str, value: int) -> None:
    if not 0 <= value <= MAX_LOGPROBS:
        raise InvalidField(field, value, f"must be an integer from 0 to {MAX_LOGPROBS}")
