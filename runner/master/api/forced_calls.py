"""Answers that have to be calls: the grammar that holds them to the model's form of one. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runner.errors import InvalidField
from runner.grammar import Grammar, bounded
from runner.master.api.grammar_fields import AskedGrammar, schema_text
from runner.master.api.tools import AskedTools
from runner.master.text.model_text import ModelText
from runner.master.text.reasoning import Harmony
from runner.master.text.tools.families import GRANITE, HARMONY, HERMES, MISTRAL, CallForm

# Whose calls stand in a list, and whose in one of its own each.
_LISTED, _ONE_BY_ONE = (GRANITE, MISTRAL), (HERMES,)
# A schema of these alone says with `properties` all that there is.
_PLAIN = {"type", "properties", "required", "title", "description", "$defs", "definitions"}
_CONTENT = "@content"


def forced_schemas(tools: AskedTools) -> dict[str, AskedGrammar]:
    """Of the arguments, which are objects, by the names of the tools that may be called; raises
    InvalidField."""
    return {
        name: AskedGrammar("json_schema", *_schema(tool["function"]["parameters"], place))
        for place, tool in enumerate(tools.tools)
        if (name := tool["function"]["name"]) == tools.name or tools.name is None
    }


def forced_calls(
    form: CallForm, tools: AskedTools, schemas: Mapping[str, AskedGrammar]
) -> AskedGrammar:
    """One call, or several where these may be parallel and none is named; raises InvalidField.

    Where the form begins with a special token, that stands in front of it (`grammar_after`).
    """
    field = "tools" if len(schemas) > 1 else next(iter(schemas.values())).field
    if form.family is HARMONY:
        # Whom a message is addressed to stands in front of it.
        if len(schemas) > 1:
            rule = "is not served with this model beside several tools: name the one to be called"
            raise InvalidField("tool_choice", tools.choice, rule)
        [schema] = schemas.values()
        return AskedGrammar("lark", f"start: %json {schema.text}\n", field)
    several = tools.is_parallel and tools.name is None
    rules = [
        f"start: {_start(form, several=several)}",
        f"call: {' | '.join(f'call_{number}' for number in range(len(schemas)))}",
        *_calls(form, schemas),
    ]
    return AskedGrammar("lark", bounded("\n".join(rules) + "\n", field), field)


def grammar_after(
    grammar: Grammar, text: ModelText, tools: AskedTools | None, prompt_ids: Sequence[int]
) -> Grammar:
    """With all that comes before what it holds to: the model's reasoning, and of calls that have
    to be the special token in front."""
    form = text.calls if tools is not None and tools.must_call else None
    if form is not None and form.family is HARMONY and isinstance(text.reasoning, Harmony):
        assert tools is not None
        [name] = [tools.name] if tools.name is not None else tools.names
        return grammar.after(text.reasoning.before_answer(prompt_ids, to=name))
    before = text.reasoning.before_answer(prompt_ids) if text.reasoning is not None else ""
    opening = None if form is None else _special_opening(form)
    if opening is not None:
        before = (before or f"start: {_CONTENT}\n").replace(_CONTENT, f"{opening} {_CONTENT}")
    return grammar.after(before) if before else grammar


def _schema(parameters: Mapping[str, Any], place: int) -> tuple[str, str]:
    """As text, and its path in the request."""
    schema: Mapping[str, Any] = {"type": "object", **parameters}
    path = f"tools[{place}].function.parameters"
    if schema["type"] != "object":
        rule = 'must be "object": a function has its arguments by name'
        raise InvalidField(f"{path}.type", schema["type"], rule)
    if schema.keys() <= _PLAIN:
        schema = {**schema, "additionalProperties": False}
    return schema_text(schema, path), path


def _start(form: CallForm, *, several: bool) -> str:
    family = form.family
    if family in _LISTED:
        return '"[" call (", " call)* "]"' if several else '"[" call "]"'
    if family not in _ONE_BY_ONE or _special_opening(form) is not None:
        return "call"
    one = f"{_text(family.openings[0])} {_text(chr(10))} call"
    if family.closing not in form.special.values():
        one += f" {_text(chr(10) + family.closing)}"
    return f"{one} ({_text(chr(10))} {one})*" if several else one


def _calls(form: CallForm, schemas: Mapping[str, AskedGrammar]) -> Iterator[str]:
    for number, (name, schema) in enumerate(schemas.items()):
        head = f'{{"name": "{name}", "{form.family.arguments}": '
        yield f'call_{number}: {_text(head)} %json {schema.text} "}}"'


def _special_opening(form: CallForm) -> str | None:
    """As Lark has it; None where the opening is text, or left out."""
    if form.family.is_bare:
        return None
    opening = form.family.openings[0]
    return next((f"<[{it}]>" for it, text in form.special.items() if text == opening), None)


def _text(literal: str) -> str:
    return json.dumps(literal)
