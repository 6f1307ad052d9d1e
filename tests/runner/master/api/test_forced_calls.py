"""Answers that have to be calls: whatever is drawn of what they are held to is one, and valid."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from runner.master.text.model_text import ModelText
from tests.runner.master.api.test_reasoning import Served
from tests.runner.master.api.test_tools import (
    OTHER,
    Texts,
    error_of,
    hermes,
    model,
    served,
    streamed_calls,
    texts,
)
from tests.runner.master.text.tools.templates import THINKING_HERMES

__all__ = ["hermes", "model", "texts"]  # fixtures

SCHEMAS: dict[str, dict[str, Any]] = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 6},
            "days": {"type": "array", "items": {"$ref": "#/$defs/day"}, "maxItems": 2},
        },
        "required": ["city"],
        "$defs": {"day": {"enum": ["today", "to\"morrow'"]}},
    },
    "time": {"properties": {"zone": {"type": "integer"}}, "required": ["zone"]},
    "stop": {"type": "object", "properties": {}},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@functools.cache
def tokenizer_of(tokenizer: str, end: int) -> LLTokenizer:
    return LLTokenizer(tokenizer, eos_token=end)


def matcher_of(served: Served, **body: Any) -> LLMatcher:
    """Of what the engine is asked to hold the answer to."""
    served.chat(**body)
    grammar = served.engine.requests[-1].grammar
    assert grammar is not None
    tokenizer = tokenizer_of(served.text.tokenizer.to_str(), served.text.chat_eos_ids[0])
    matcher = LLMatcher(tokenizer, grammar.text)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def drawn(special_from: int, matcher: LLMatcher, end: int, seed: int) -> list[int]:
    """Ids by chance, as a model that talks nonsense draws them, up to an end."""
    draw, ids = random.Random(seed), list[int]()
    while not matcher.is_stopped() and not (matcher.is_accepting() and draw.random() < 0.7):
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = [int(one) for one in np.flatnonzero(bits) if one != end]
        # Else a thought would have no end.
        special = [one for one in allowed if one >= special_from]
        ids.append(draw.choice(special if special and draw.random() < 0.5 else allowed))
        assert matcher.consume_token(ids[-1])
        assert len(ids) < 2000
    return ids


def follows(served: Served, matcher: LLMatcher, text: str) -> bool:
    ids = served.text.tokenizer.encode(text, add_special_tokens=False).ids
    own = matcher.deep_copy()
    return own.try_consume_tokens(ids) == len(ids) and own.is_accepting()


def checked(calls: list[dict[str, Any]]) -> list[str]:
    """The names; every call's arguments are what its schema says."""
    for call in calls:
        function = call["function"]
        jsonschema.validate(json.loads(function["arguments"]), SCHEMAS[function["name"]])
    return [call["function"]["name"] for call in calls]


@pytest.mark.parametrize("choice", ["required", named("weather"), named("stop")])
def test_whatever_is_drawn_is_a_valid_call(
    model: Served, demo_text: ModelText, choice: Any
) -> None:
    tools = TOOLS[:1] if model.name == "harmony" and choice == "required" else TOOLS
    body = {"tools": tools, "tool_choice": choice}
    matcher, end = matcher_of(model, **body), model.text.chat_eos_ids[0]
    special_from = demo_text.vocabulary_size
    for seed in range(4):
        model.ids = [*drawn(special_from, matcher.deep_copy(), end, seed), end]
        answer = model.chat(**body)
        chunks = model.stream(**body)
        assert answer["finish_reason"] == chunks[-1]["finish_reason"] == "tool_calls"
        assert answer["message"]["content"] is None
        names = checked(answer["message"]["tool_calls"])
        assert checked(streamed_calls(chunks)) == names
        if choice != "required":
            assert names == [choice["function"]["name"]]


def test_several_calls_where_they_may_be_parallel(hermes: Served) -> None:
    zone = '<tool_call>\n{"name": "time", "arguments": {"zone": 1}}\n</tool_call>'
    both = f"{zone}\n{zone}"
    asked = {"tools": TOOLS, "tool_choice": "required"}
    several = matcher_of(hermes, **asked)
    one = matcher_of(hermes, **asked, parallel_tool_calls=False)
    of_a_name = matcher_of(hermes, tools=TOOLS, tool_choice=named("time"))
    found = [
        (follows(hermes, matcher, zone), follows(hermes, matcher, both))
        for matcher in (several, one, of_a_name)
    ]
    assert found == [(True, True), (True, False), (True, False)]
    for text in ("", "Yes.", zone.replace("zone", "city"), zone.replace("time", "stop"), OTHER):
        assert not follows(hermes, several, text)
    assert not follows(hermes, of_a_name, zone.replace("time", "weather"))


def test_a_call_comes_behind_the_reasoning(texts: Texts) -> None:
    call = '<tool_call>\n{"name": "time", "arguments": {"zone": 1}}\n</tool_call>'
    with served(texts(THINKING_HERMES), call) as thinking:
        matcher = matcher_of(thinking, tools=TOOLS, tool_choice="required")
        assert follows(thinking, matcher, f"<think>\nHm.\n</think>\n\n{call}")
        assert follows(thinking, matcher, call)
        assert not follows(thinking, matcher, "<think>\nHm.\n</think>\n\nYes.")


def test_without_being_asked_nothing_is_held_to_a_form(hermes: Served) -> None:
    for choice in ("auto", "none"):
        hermes.chat(tools=TOOLS, tool_choice=choice)
        assert hermes.engine.requests[-1].grammar is None


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"$ref": "#/$defs/nowhere"}, "tools[0].function.parameters", "cannot be served"),
    ({"type": "array"}, "tools[0].function.parameters.type", 'must be "object"'),
    ({"description": "x" * 2**19}, "tools", "context"),
    ({"properties": {"a": {"pattern": "("}}}, "tools[0].function.parameters", "cannot be served"),
    ({"properties": {"a": {"type": "no"}}}, "tools[0].function.parameters", "cannot be served"),
]


@pytest.mark.parametrize(("schema", "field", "rule"), REFUSED)
def test_a_schema_that_cannot_be_held_to_is_named(
    hermes: Served, schema: dict[str, Any], field: str, rule: str
) -> None:
    function = {"name": "f", "parameters": schema}
    hermes.engine.max_model_len = 512
    tools = [{"type": "function", "function": function}, *TOOLS]
    error = error_of(hermes.url, tools=tools, tool_choice="required")
    assert "start:" not in error["message"]
    assert error["param"] == field
    assert rule in error["message"]
    assert hermes.engine.requests == []


def test_what_is_asked_beside_is_refused(hermes: Served, model: Served) -> None:
    asked: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required"}
    assert error_of(hermes.url, **asked, ignore_eos=True)["param"] == "ignore_eos"
    form = {"response_format": {"type": "json_object"}}
    assert error_of(hermes.url, **asked, **form)["param"] == "response_format"
    if model.name == "harmony":
        error = error_of(model.url, **asked)
        assert error["param"] == "tool_choice"
        assert "name the one" in error["message"]
