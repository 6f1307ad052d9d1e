"""What all bodies share, checked, and AIOS's own: what is wrong is refused by the field's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from contract.faults import faults_of
from contract.generation import MAX_STOP_LENGTH, MAX_STOP_STRINGS
from contract.near_names import hint, unknown_field
from runner.errors import InvalidField
from runner.master.api.grammar_fields import (
    AskedGrammar,
)
from runner.sampling_parameters import MAX_LOGIT_BIAS_ENTRIES
from web.unserved import Table

# An object's keys, the body's own too: pydantic makes a fault of each unknown one, and a million
# of those cost seconds and gigabytes. No field of ours needs more.
MAX_KEYS = MAX_LOGIT_BIAS_ENTRIES
_SHOWN_FAULTS = 4
DRAW_A_SEED = -1  # llama.cpp's and others' word


def whole(value: object) -> object:
    """Languages with one kind of number send 16 as 16.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole: TypeAlias = Annotated[int, BeforeValidator(whole)]
Tokens: TypeAlias = Annotated[int, Field(ge=1), BeforeValidator(whole)]


class RequestBody(BaseModel):
    """A JSON object whose fields are all known; null stands for "not given", as in OpenAI's API.

    `unserved` fields are known and not served: what asks for nothing there passes.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    unserved: ClassVar[Table] = {}

    def check(self) -> None:
        """The rules that pydantic does not know; raises InvalidField."""


class GenerationBody(RequestBody):
    """What may be asked for and set as a default; None where nobody says. SamplingParameters
    checks the bounds."""

    temperature: float | None = None
    top_k: Whole | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Whole | None = None
    stop: Any = None


class SamplingBody(GenerationBody):
    """The fields that every generating endpoint takes."""

    stop_token_ids: list[Whole] | None = Field(default=None, fail_fast=True)
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

    def asked_grammar(self) -> AskedGrammar | None:
        """What the answer is held to; raises InvalidField."""
        return None

    @property
    def names_seed(self) -> bool:
        """Whether the request asks for one seed; DRAW_A_SEED asks for any."""
        return self.seed not in (None, DRAW_A_SEED)

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
    carry: ClassVar[None] = None
    prompt: str
    max_new_tokens: Tokens | None = None
    do_sample: bool | None = None
    enable_streaming: bool = False

    def check(self) -> None:
        if not self.prompt:
            raise InvalidField("prompt", self.prompt, "must not be empty")

    def prompts(self) -> list[str | list[int]]:
        return [self.prompt]


Body = TypeVar("Body", bound=RequestBody)


def parse_body(kind: type[Body], document: Mapping[str, Any]) -> Body:
    """`document` as `kind`; raises InvalidField naming every field, value and rule it breaks."""
    given: dict[str, Any] = {}
    _check_keys("body", document)
    for name, value in document.items():
        _check_keys(name, value)
        row = kind.unserved.get(name)
        if row is None and value is None and name not in kind.model_fields:
            rule = "is not a field of this request" + hint(name, kind.model_fields)
            raise InvalidField(name, value, rule)
        if value is None or (row is not None and row.asks_nothing(value)):
            continue
        if row is not None and row.why is not None:
            raise InvalidField(name, value, row.why)
        given[name] = value
    try:
        body = kind.model_validate(given)
    except ValidationError as error:
        first, *others = faults_of(
            error, whole="body", unknown=unknown_field(kind), most=_SHOWN_FAULTS
        )
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
