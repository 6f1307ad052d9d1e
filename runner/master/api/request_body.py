"""Request bodies: checked against pydantic models, refused with InvalidField by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runner.errors import InvalidField
from runner.sampling_parameters import MAX_LOGIT_BIAS_ENTRIES

# An object's keys, the body's own too: pydantic makes a fault of each unknown one, and a million
# of those cost seconds and gigabytes. No field of ours needs more.
MAX_KEYS = MAX_LOGIT_BIAS_ENTRIES
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 512


class RequestBody(BaseModel):
    """A JSON object whose fields are all known; null stands for "not given", as in OpenAI's API.

    `ignored` fields are accepted because clients send them and nothing depends on them.
    `refused` fields are known but not supported: only the values listed with the rule pass.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    ignored: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {}


class SamplingBody(RequestBody):
    """The fields that every generating endpoint takes; None where the request does not say."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Any = None
    stop_token_ids: list[int] | None = Field(default=None, fail_fast=True)
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool = False

    def given(self, *names: str) -> dict[str, Any]:
        """The named fields that the request sets."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


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
        return kind.model_validate(given)
    except ValidationError as error:
        raise _invalid_field(error) from error


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


def _invalid_field(error: ValidationError) -> InvalidField:
    """All of pydantic's complaints in one: the first names the field, the others follow it."""
    faults = error.errors(include_url=False)
    first = faults[0]
    value = None if first["type"] == "missing" else first["input"]
    others = [f"{_path(fault['loc'])}: {_rule(fault)}" for fault in faults[1:4]]
    return InvalidField(_path(first["loc"]), value, "; ".join([_rule(first), *others]))


def _rule(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "is not a field of this request"
    if fault["type"] == "missing":
        return "is required"
    message = str(fault["msg"])
    if message.startswith("Input should be "):
        return "must be " + message.removeprefix("Input should be ")
    return message.removeprefix("Value error, ")


def _path(location: tuple[int | str, ...]) -> str:
    """`logit_bias.5`, `messages[0]`: as a reader of the request would write it."""
    path = ""
    for item in location:
        path += f"[{item}]" if isinstance(item, int) else f".{item}" if path else item
    return path or "body"
