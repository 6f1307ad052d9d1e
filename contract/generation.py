"""How an answer is generated: every parameter's name and bounds, each surface its own.

The engine takes more than AIOS's block protocol does. Both stand here side by side: the runner
checks what it is asked by ENGINE_BOUNDS; the proxy block and the stack file by BlockGeneration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 512  # characters
SEED_LIMIT = 2**63
# Whoever names one of these wants no greedy answer.
MEANS_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


class Bounds(NamedTuple):
    """What the engine takes. `rule` says it in words."""

    kind: type[float] | type[int]
    low: float
    high: float
    rule: str
    above_low: bool = False
    """`low` itself is refused."""

    def hold(self, value: object) -> bool:
        """Whether `value` is such a number; true and false are none, nor is NaN."""
        kinds = int if self.kind is int else int | float
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        return self.low <= value <= self.high and not (self.above_low and value == self.low)


ENGINE_BOUNDS = {
    "temperature": Bounds(float, 0, 2, "a number from 0 (greedy) to 2"),
    "top_p": Bounds(float, 0, 1, "a number above 0 and up to 1", above_low=True),
    "min_p": Bounds(float, 0, 1, "a number from 0 to 1"),
    "repetition_penalty": Bounds(float, 0, 10, "a number above 0 and up to 10", above_low=True),
    "presence_penalty": Bounds(float, -2, 2, "a number from -2 to 2"),
    "frequency_penalty": Bounds(float, -2, 2, "a number from -2 to 2"),
    "top_k": Bounds(int, 0, 2**31 - 1, "an integer from 0 (off) up"),
    "seed": Bounds(int, 0, SEED_LIMIT - 1, "an integer from 0 to 2**63 - 1"),
}


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004
    return value


NO_BOOLEAN = BeforeValidator(_no_boolean)
# The bounds go before the check for booleans, so that the schema shows them.
_Share = Annotated[float, Field(ge=0, le=1), NO_BOOLEAN]
_StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]


class BlockGeneration(BaseModel):
    """generation_config of the block protocol. What is left out is the block's, then the model's
    own."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    max_new_tokens: Annotated[int, Field(ge=1, le=36000), NO_BOOLEAN] | None = None
    """Length of the answer at most, in tokens."""
    do_sample: bool | None = None
    """false takes the most probable token each time, whatever the fields below say."""
    temperature: Annotated[float, Field(ge=0, le=2), NO_BOOLEAN] | None = None
    """Above 1 the answer varies more, below 1 less; 0 is do_sample false."""
    top_k: Annotated[int, Field(ge=-1, le=1000), NO_BOOLEAN] | None = None
    """Only the so many most probable tokens; 0 and -1 take all."""
    top_p: _Share | None = None
    """Only the most probable tokens that make up this probability; 0 leaves one."""
    min_p: _Share | None = None
    """Only tokens at least so probable, as a share of the most probable one."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10), NO_BOOLEAN] | None = None
    """Above 1 makes tokens that were there before less probable."""
    seed: Annotated[int, Field(ge=0, le=SEED_LIMIT - 1), NO_BOOLEAN] | None = None
    """Equal seeds give equal answers."""
    stop: Annotated[list[_StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    """Texts at which the answer ends."""


def openai_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an OpenAI request for a checked generation_config, without its nulls.

    do_sample false is greedy: temperature 0 alone. top_p 0 is a nucleus of one token, which
    OpenAI's API has no top_p for.
    """
    parameters = {name: value for name, value in config.items() if value is not None}
    if "max_new_tokens" in parameters:
        parameters["max_tokens"] = parameters.pop("max_new_tokens")
    if parameters.pop("do_sample", True) is False:
        for name in MEANS_SAMPLING:
            parameters.pop(name, None)
        parameters["temperature"] = 0
    elif parameters.get("top_p") == 0:
        del parameters["top_p"]
        parameters["top_k"] = 1
    return parameters


_PROTOCOL_WORDS = {
    "description": "description",
    "minimum": "min",
    "maximum": "max",
    "maxItems": "max_items",
    "minLength": "min_length",
    "maxLength": "max_length",
}


def block_protocol() -> dict[str, dict[str, Any]]:
    """BlockGeneration's fields in component.json's words."""
    schemas = BlockGeneration.model_json_schema()["properties"]
    return {name: _protocol_field(schema) for name, schema in schemas.items()}


def _protocol_field(schema: dict[str, Any]) -> dict[str, Any]:
    given = next((item for item in schema.get("anyOf", ()) if item["type"] != "null"), schema)
    both = schema | given
    field = {"type": both["type"]}
    field |= {ours: both[theirs] for theirs, ours in _PROTOCOL_WORDS.items() if theirs in both}
    return field | ({"items": _protocol_field(both["items"])} if "items" in both else {})
