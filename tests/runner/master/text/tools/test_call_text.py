from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.master.text.tools.call_parts import CallPart, CallParts, whole_calls
from runner.master.text.tools.call_text import CallReader
from runner.master.text.tools.families import GRANITE, HERMES, LLAMA, MISTRAL, Family

NAMES = frozenset({"f", "g", "weather"})
Call = tuple[str, str]


class Whole(NamedTuple):
    content: str
    calls: list[Call]


class Said(NamedTuple):
    content: str
    calls: tuple[CallPart, ...]


def parts(
    family: Family, text: str, cuts: Sequence[int] = (), *, one_only: bool = False
) -> list[Said]:
    """What each piece of a text that arrives cut at these places says and calls."""
    called = CallParts(one_only=one_only)
    # Of Hermes's markers none is a special token.
    hidden = () if family is HERMES else family.openings
    own = CallReader(family, called, hidden=hidden, names=NAMES)
    places = [0, *sorted({min(cut, len(text)) for cut in cuts}), len(text)]
    said = [Said(own.push(text[begin:end]), called.taken()) for begin, end in pairwise(places)]
    return [*said, Said(own.flush(), called.taken())]


def whole(said: Sequence[Said]) -> Whole:
    calls = whole_calls(part for one in said for part in one.calls)
    assert [call.place for call in calls] == list(range(len(calls)))
    content = "".join(one.content for one in said)
    return Whole(content, [(call.name or "", call.arguments) for call in calls])


F, G = ("f", '{"a": 1}'), ("g", "{}")
OBJECT = '{"name": "f", "arguments": {"a": 1}}'
OTHER = '{"name": "g", "arguments": {}}'
DEEP = '{"a": {"b": ["}", "\\"]", {}]}, "c": "</tool_call>"}'
PARAMETERS = '{"name": "f", "parameters": {"a": 1}}'

CASES: list[tuple[Family, str, str, list[Call]]] = [
    (HERMES, f"<tool_call>\n{OBJECT}\n</tool_call>", "", [F]),
    (HERMES, f"<tool_call>{OBJECT}</tool_call>", "", [F]),
    (HERMES, f"Let me see.\n\n<tool_call>\n{OBJECT}\n</tool_call>\n", "Let me see.", [F]),
    (HERMES, f"<tool_call>{OBJECT}</tool_call>\n<tool_call>{OTHER}</tool_call>", "", [F, G]),
    (HERMES, f"<tool_call>{OBJECT}</tool_call>So.", "So.", [F]),
    (HERMES, f"<tool_call>{OBJECT}", "", [F]),
    (HERMES, f"<tool_call>[{OBJECT}, {OTHER}]</tool_call>", "", [F, G]),
    (HERMES, f'<tool_call>{{"name": "f", "arguments": {DEEP}}}</tool_call>', "", [("f", DEEP)]),
    (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [F]),
    (HERMES, '<tool_call>{"id": [1, {}], "name": "f", "arguments": {"a": 1}, "x": "y"}', "", [F]),
    (HERMES, '<tool_call>{"name": "g"}</tool_call>', "", [G]),
    (HERMES, '<tool_call>{"name": "g", "arguments": null}</tool_call>', "", [G]),
    (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [F]),
    (HERMES, '<tool_call>{"name": "no such", "arguments": {}}', "", [("no such", "{}")]),
    # Cut, or broken, where the call has begun: it stands.
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "x', "", [("f", '{"a": "x')]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>So.', "So.", [F]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1</tool_call>', "", [("f", '{"a": 1')]),
    # No calls.
    (HERMES, "", "", []),
    (HERMES, " \n", " \n", []),
    (HERMES, "So.\n", "So.\n", []),
    (HERMES, "a <tool_cal b", "a <tool_cal b", []),
    (HERMES, "a <tool_cal", "a <tool_cal", []),
    (HERMES, "<<tool_call>>", "<<tool_call>>", []),
    (HERMES, "<tool_call>\nHm.</tool_call>", "<tool_call>\nHm.</tool_call>", []),
    (HERMES, "<tool_call>[]</tool_call>", "<tool_call>[]</tool_call>", []),
    (HERMES, '<tool_call>{"name": "f"', '<tool_call>{"name": "f"', []),
    (HERMES, '<tool_call>{"name": 5}', '<tool_call>{"name": 5}', []),
    (HERMES, '<tool_call>{"name": "\\ud800"}', '<tool_call>{"name": "\\ud800"}', []),
    (HERMES, f"<tool_call><tool_call>{OBJECT}", "<tool_call>", [F]),
    (HERMES, OBJECT, OBJECT, []),
    (LLAMA, PARAMETERS, "", [F]),
    (LLAMA, f"<|python_tag|>{PARAMETERS}", "", [F]),
    (LLAMA, f"\n\n{PARAMETERS}; {OTHER}", "", [F, G]),
    (LLAMA, f"I call.\n<|python_tag|>{PARAMETERS}; {OTHER}", "I call.", [F, G]),
    (LLAMA, '{"name": "Ada", "parameters": {}}', '{"name": "Ada", "parameters": {}}', []),
    (LLAMA, f"So: {PARAMETERS}", f"So: {PARAMETERS}", []),
    (LLAMA, f"{PARAMETERS} So.", " So.", [F]),
    (LLAMA, "<|python_tag|>print(1)", "print(1)", []),
    (LLAMA, '{"a": 1}', '{"a": 1}', []),
    (LLAMA, '{"a": 1} {"name": "f"}', '{"a": 1} {"name": "f"}', []),
    (MISTRAL, f"[TOOL_CALLS][{OBJECT}]", "", [F]),
    (MISTRAL, f"[TOOL_CALLS] [{OBJECT},{OTHER}]", "", [F, G]),
    (MISTRAL, '[TOOL_CALLS]f[ARGS]{"a": 1}', "", [F]),
    (MISTRAL, '[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{"a": 1}[TOOL_CALLS]g{}', "", [F, G]),
    (MISTRAL, 'Yes.[TOOL_CALLS]f {"a": 1}', "Yes.", [F]),
    (MISTRAL, "[TOOL_CALLS]None.", "None.", []),
    (MISTRAL, "[1] and [TOOL", "[1] and [TOOL", []),
    (GRANITE, f"<|tool_call|>[{OBJECT}, {OTHER}]", "", [F, G]),
    (GRANITE, f"<tool_call>[{OBJECT}]", "", [F]),
    (GRANITE, f"<|tool_call|>{OBJECT}", "", [F]),
    (GRANITE, "<|tool_call|>[{}]", "[{}]", []),
]


@pytest.mark.parametrize(("family", "text", "content", "calls"), CASES)
def test_what_is_said_and_what_is_called(
    family: Family, text: str, content: str, calls: list[Call]
) -> None:
    found = whole(parts(family, text))
    assert found == (content, calls)
    # Every split in two, and every character by itself.
    for cut in range(len(text)):
        assert whole(parts(family, text, [cut])) == found
    assert whole(parts(family, text, range(len(text)))) == found


WORDS = [
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "<|tool_call|>", "[ARGS]"),
    *('{"name": "f", ', '"name": "g"', '"arguments": ', '"parameters": ', '{"a": 1}', "null"),
    *("{", "}", "[", "]", ",", ":", '"', "\\", "\\ud800", " ", "\n", "<", "f", "é", "12", ";"),
]


@given(
    st.sampled_from([GRANITE, HERMES, LLAMA, MISTRAL]),
    st.lists(st.sampled_from(WORDS), max_size=24).map("".join),
    st.lists(st.integers(0, 120)),
    st.booleans(),
)
def test_how_a_text_is_cut_changes_nothing(
    family: Family, text: str, cuts: list[int], one_only: bool
) -> None:
    found = whole(parts(family, text, one_only=one_only))
    assert whole(parts(family, text, cuts, one_only=one_only)) == found
    assert whole(parts(family, text, range(len(text)), one_only=one_only)) == found
    assert not one_only or len(found.calls) <= 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=4)


@given(st.lists(st.tuples(st.sampled_from(sorted(NAMES)), ARGUMENTS), min_size=1), st.data())
def test_whatever_is_called_is_read_as_it_was_written(
    called: list[tuple[str, dict[str, object]]], data: st.DataObject
) -> None:
    ascii_only, indent = data.draw(st.booleans()), data.draw(st.sampled_from([None, 1]))
    texts = [json.dumps(given, ensure_ascii=ascii_only, indent=indent) for _, given in called]
    expected = [(name, text) for (name, _), text in zip(called, texts, strict=True)]
    objects = [
        f'{{"name": "{name}", "arguments": {text}}}'
        for (name, _), text in zip(called, texts, strict=True)
    ]
    written = {
        HERMES: "".join(f"<tool_call>\n{one}\n</tool_call>\n" for one in objects),
        LLAMA: ";".join(objects),
        MISTRAL: "".join(f"[TOOL_CALLS]{name}[ARGS]{text}" for name, text in expected),
        GRANITE: f"<|tool_call|>[{', '.join(objects)}]",
    }
    for family, text in written.items():
        assert whole(parts(family, text, range(0, len(text), 3))) == ("", expected)


def test_arguments_come_piece_by_piece_after_the_name() -> None:
    text = f"Yes. <tool_call>{OBJECT}</tool_call>"
    said = parts(HERMES, text, range(len(text)))
    calls = [part for one in said for part in one.calls]
    assert (calls[0].name, calls[0].arguments) == ("f", "{")
    assert [part.name for part in calls[1:]] == [None] * (len('{"a": 1}') - 1)
    assert "".join(one.content for one in said[:6]) == "Yes."


def test_one_call_where_only_one_is_wanted() -> None:
    text = f"<tool_call>{OBJECT}</tool_call><tool_call>{OTHER}</tool_call>"
    assert whole(parts(HERMES, text, one_only=True)) == ("", [F])
