"""Bodies of /v1/completions and /v1/chat/completions."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from runner.errors import InvalidField
from runner.master.api.request_body import SamplingBody
from runner.sampling_parameters import MAX_LOGPROBS

MAX_CHOICES = 16
MAX_PROMPTS = 64


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
    max_tokens: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    def check(self) -> None:
        """The rules that pydantic does not know; raises InvalidField."""
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
    messages: list[dict[str, Any]] = Field(fail_fast=True)
    max_completion_tokens: int | None = None
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

    def conversation(self) -> list[dict[str, Any]]:
        """The messages with content as text; raises InvalidField naming the one that is wrong."""
        if not self.messages:
            raise InvalidField("messages", [], "must have at least one message")
        return [_message(f"messages[{place}]", item) for place, item in enumerate(self.messages)]


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
