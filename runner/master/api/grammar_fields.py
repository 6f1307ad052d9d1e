"""The fields that hold an answer to a form: OpenAI's response_format, vLLM's structured_outputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from contract.faults import MISSING
from runner.errors import InvalidField
from runner.grammar import bounded

AN_OBJECT = {"type": "object"}
# In a schema, for the library: all on one line, since a model may write white space without end;
# and a keyword that it does not know is refused.
JSON_OPTIONS = {
    "x-guidance": {
        "whitespace_flexible": False,
        "item_separator": ", ?",
        "key_separator": ": ?",
        "lenient": False,
    }
}


class AskedGrammar(NamedTuple):
    """What a request asks for, by its `field`, whose name every refusal has.

    `kind` says what `text` is: json_schema (a schema as JSON), regex, choice (a list of strings as
    JSON), ebnf (GBNF, or Lark as in lark), lark (llguidance's Lark).
    """

    kind: str
    text: str
    field: str


class JsonSchemaFormat(BaseModel):
    """`strict` true or not: the answer is held to the schema."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    def asked(self, field: str) -> AskedGrammar | None:
        """None for text; raises InvalidField."""
        if (self.json_schema is not None) != (self.type == "json_schema"):
            needs = self.type == "json_schema"
            rule = "is required with" if needs else "is allowed only with"
            given = MISSING if self.json_schema is None else self.json_schema.name
            raise InvalidField(f"{field}.json_schema", given, f"{rule} type json_schema")
        if self.json_schema is not None:
            path = f"{field}.json_schema.schema"
            return AskedGrammar("json_schema", schema_text(self.json_schema.schema_, path), path)
        if self.type == "json_object":
            return AskedGrammar("json_schema", schema_text(AN_OBJECT, field), field)
        return None


class StructuredOutputs(BaseModel):
    """vLLM's: exactly one of json, regex, choice, grammar and json_object."""

    model_config = ConfigDict(extra="forbid", strict=True)
    json_: Any = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = Field(default=None, fail_fast=True)
    grammar: str | None = None
    json_object: bool | None = None

    def asked(self, field: str) -> AskedGrammar:
        """Raises InvalidField."""
        found = list(
            asked_of(
                under=field + ".",
                json_schema=("json", self.json_),
                regex=("regex", self.regex),
                choice=("choice", self.choice),
                ebnf=("grammar", self.grammar),
            )
        )
        if self.json_object:
            path = f"{field}.json_object"
            found.append(AskedGrammar("json_schema", schema_text(AN_OBJECT, path), path))
        if len(found) != 1:
            names = [asked.field.removeprefix(field + ".") for asked in found]
            rule = "must have exactly one of json, regex, choice, grammar and json_object: true"
            raise InvalidField(field, names, rule)
        return found[0]


def asked_of(*, under: str = "", **given: tuple[str, Any]) -> Iterator[AskedGrammar]:
    """By kind the name of its field, below `under`, and the field's value, None where it is not
    given; raises InvalidField."""
    for kind, (name, value) in given.items():
        if value is not None:
            yield AskedGrammar(kind, _TEXTS[kind](value, under + name), under + name)


def only_one(asked: list[AskedGrammar]) -> AskedGrammar | None:
    """Raises InvalidField where there are several."""
    if len(asked) > 1:
        rule = f"must not be given beside {asked[0].field}: an answer is held to one form"
        raise InvalidField(asked[1].field, MISSING, rule)
    return asked[0] if asked else None


def _as_json(value: object, field: str) -> str:
    try:
        text = json.dumps(value)
    except (RecursionError, ValueError) as error:
        raise InvalidField(field, MISSING, "is nested too deeply") from error
    return bounded(text, field)


def schema_text(value: object, field: str) -> str:
    """A JSON schema, or the text of one, as AskedGrammar has it; raises InvalidField."""
    if isinstance(value, str):
        bounded(value, field)
        try:
            value = json.loads(value)
        except (RecursionError, ValueError) as error:
            raise InvalidField(field, value, f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidField(field, value, "must be a JSON object: a JSON schema, or the text of one")
    return _as_json({**value, **JSON_OPTIONS}, field)


def _choices(value: list[str], field: str) -> str:
    if not value:
        raise InvalidField(field, value, "must have at least one string")
    return _as_json(value, field)


_TEXTS: dict[str, Callable[[Any, str], str]] = {
    "json_schema": schema_text,
    "regex": bounded,
    "choice": _choices,
    "ebnf": bounded,
}
