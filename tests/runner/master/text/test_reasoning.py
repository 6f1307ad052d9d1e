from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from runner.master.text.reasoning import (
    Harmony,
    HarmonySplitter,
    Marks,
    Split,
    Splitter,
    ThinkSplitter,
    ThinkTags,
    reasoning_format,
)
from runner.master.text.tools.call_parts import CallPart, CallParts, whole_calls

OPEN, CLOSE = "<think>", "</think>"
OPEN_ID, CLOSE_ID = 1, 2
CHANNEL, MESSAGE, START, END, RETURN = range(5)
TOKENS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>")
HARMONY = dict(enumerate((*TOKENS, "<|constrain|>")))


def tokenizer_with(special: Sequence[str] = (), plain: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer of single bytes, with these tokens beside them."""
    alphabet = {chr(code): code - 32 for code in range(32, 127)} | {"Ġ": 95, "Ċ": 96}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens([AddedToken(text, special=False) for text in plain])
    return tokenizer


def think(*, opened: bool = False, special: bool = False) -> Splitter:
    marks = {OPEN_ID: OPEN, CLOSE_ID: CLOSE} if special else {}
    return ThinkSplitter(ThinkTags(OPEN, CLOSE, marks, tokenizer_with()), opened=opened)


def harmony() -> Splitter:
    return HarmonySplitter(HARMONY)


def split(splitter: Splitter, text: str, marks: Marks = (), cuts: Sequence[int] = ()) -> Split:
    """The split of a text that arrives cut at these places; a mark at a cut goes before it."""
    parts: list[Split] = []
    for begin, end in pairwise([-1, *sorted({min(cut, len(text)) for cut in cuts}), len(text)]):
        own = [(place - max(begin, 0), mark) for place, mark in marks if begin < place <= end]
        parts.append(splitter.push(text[max(begin, 0) : end], own))
    parts.append(splitter.flush())
    return Split("".join(part[0] for part in parts), "".join(part[1] for part in parts))


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "content"),
    [
        ("<think>\nHm.\n\nSo.\n</think>\n\nYes.\n", False, "Hm.\n\nSo.", "Yes.\n"),
        ("\nHm.</think>Yes.", True, "Hm.", "Yes."),
        ("<think>\nHm.</think>Yes.", True, "Hm.", "Yes."),  # said again
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
        ("</think>Yes.", False, "", "Yes."),
        ("Yes.", False, "", "Yes."),
        (" Yes.", False, "", " Yes."),
        ("Use <think> and </think>.", False, "", "Use <think> and </think>."),
        ("<think>a</think>b<think>c</think>", False, "a", "b<think>c</think>"),
        ("<think>a </thin b</think>c", False, "a </thin b", "c"),
        ("<think>Hm. I ", False, "Hm. I", ""),  # out of tokens
        ("Hm. </thi", True, "Hm. </thi", ""),
        ("  <thi", False, "", "  <thi"),
        ("", False, "", ""),
        ("", True, "", ""),
    ],
)
def test_think_tags(text: str, opened: bool, reasoning: str, content: str) -> None:
    assert split(think(opened=opened), text) == (reasoning, content)


def test_tags_that_are_special_tokens_are_told_by_their_places() -> None:
    marks = [(0, OPEN_ID), (3, CLOSE_ID), (8, OPEN_ID)]
    assert split(think(special=True), "Hm.\nYes. No.", marks) == ("Hm.", "Yes. No.")


FINAL = [(0, CHANNEL), (8, MESSAGE), (11, END), (11, START), (20, CHANNEL), (25, MESSAGE)]
# Two messages on each channel, of a letter each.
TWICE = [(0, CHANNEL), (8, MESSAGE), (9, END), (9, CHANNEL), (17, MESSAGE), (18, END)]
TWICE += [(18, CHANNEL), (23, MESSAGE), (24, END), (24, CHANNEL), (29, MESSAGE), (30, RETURN)]


@pytest.mark.parametrize(
    ("text", "marks", "reasoning", "content"),
    [
        ("analysisHm.assistantfinalYes.", FINAL, "Hm.", "Yes."),
        ("finalYes.", [(0, CHANNEL), (5, MESSAGE)], "", "Yes."),
        ("analysisHm. I", [(0, CHANNEL), (8, MESSAGE)], "Hm. I", ""),
        ("analys", [(0, CHANNEL)], "", ""),
        ("Yes.", [], "", "Yes."),
        ("assistantYes.", [(0, START), (9, MESSAGE)], "", "Yes."),
        ("commentaryWait.", [(0, CHANNEL), (10, MESSAGE)], "", "Wait."),
        ("commentary to=f json{}", [(0, CHANNEL), (20, MESSAGE)], "{}", ""),
        (
            "analysisaanalysisbfinalcfinald",
            TWICE,
            "a\nb",
            "c\nd",
        ),
    ],
)
def test_harmony(text: str, marks: Marks, reasoning: str, content: str) -> None:
    assert split(harmony(), text, marks) == (reasoning, content)


def told(text: str) -> tuple[str, Marks]:
    """A text with harmony's tokens in it, as an answer tells it."""
    plain, marks = "", list[tuple[int, int]]()
    for piece in re.split(r"(<\|[a-z]+\|>)", text):
        found = [mark for mark, token in HARMONY.items() if token == piece]
        marks += [(len(plain), mark) for mark in found]
        plain += "" if found else piece
    return plain, marks


TO_F = "<|channel|>commentary to=functions.f<|constrain|>json<|message|>"


def called(text: str, marks: Marks, cuts: Sequence[int]) -> tuple[Split, list[CallPart]]:
    calls = CallParts()
    said = split(HarmonySplitter(HARMONY, calls), text, marks, cuts)
    return said, whole_calls(calls.taken())


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        (  # The one's recipient stands behind the channel, the other's behind the role.
            f'<|channel|>analysis<|message|>Hm.<|end|>{TO_F}{{"a": 1}}<|call|><|start|>assistant'
            " to=functions.g<|channel|>commentary json<|message|>{}<|call|>",
            ("Hm.", ""),
            [("f", '{"a": 1}'), ("g", "{}")],
        ),
        (" to=functions.f<|channel|>commentary<|message|>{}", ("", ""), [("f", "{}")]),
        ("<|channel|>commentary to=python<|message|>1", ("1", ""), []),
        ("<|channel|>final<|message|>Yes.", ("", "Yes."), []),
        (f'{TO_F}{{"a', ("", ""), [("f", '{"a')]),
        ("Yes.", ("", "Yes."), []),
    ],
)
def test_what_harmony_addresses_to_a_function_is_a_call(
    text: str, said: tuple[str, str], calls: list[tuple[str, str]]
) -> None:
    expected = [CallPart(place, *call) for place, call in enumerate(calls)]
    plain, marks = told(text)
    for cuts in ((), range(len(plain)), *((cut,) for cut in range(len(plain)))):
        assert called(plain, marks, cuts) == (said, expected)


TEXTS = st.lists(
    st.sampled_from([OPEN, CLOSE, "<", "</", "</think", "<think", "think>", ">", " ", "\n", "a"])
).map("".join)
CUTS = st.lists(st.integers(0, 60))


@given(TEXTS, st.booleans(), CUTS)
def test_how_a_text_is_cut_changes_nothing(text: str, opened: bool, cuts: list[int]) -> None:
    whole = split(think(opened=opened), text)
    assert split(think(opened=opened), text, cuts=cuts) == whole
    assert split(think(opened=opened), text, cuts=range(len(text))) == whole


@st.composite
def marked(draw: st.DrawFn, ids: Sequence[int]) -> tuple[str, Marks]:
    text = draw(TEXTS)
    marks = draw(st.lists(st.tuples(st.integers(0, len(text)), st.sampled_from(ids)), max_size=9))
    return text, sorted(marks)


@given(marked([OPEN_ID, CLOSE_ID]), st.booleans(), CUTS)
def test_how_a_text_with_special_tags_is_cut_changes_nothing(
    text: tuple[str, Marks], opened: bool, cuts: list[int]
) -> None:
    whole = split(think(opened=opened, special=True), *text)
    assert split(think(opened=opened, special=True), *text, cuts=cuts) == whole


@given(marked(list(HARMONY)), CUTS)
def test_how_a_harmony_text_is_cut_changes_nothing(
    text: tuple[str, Marks], cuts: list[int]
) -> None:
    assert split(harmony(), *text, cuts=cuts) == split(harmony(), *text)


THINKING_TEMPLATE = "{{ m.content.split('</think>')[-1] }}{% if add_generation_prompt %}"


@pytest.mark.parametrize(
    ("tags", "template"),
    [
        ((OPEN, CLOSE), THINKING_TEMPLATE),
        (("<seed:think>", "</seed:think>"), "{{ '</seed:think>' }}"),
        (("<thought>", "</thought>"), "<thought>{{ x }}</thought>"),
        (("[THINK]", "[/THINK]"), "[THINK]{{ x }}[/THINK]"),
    ],
)
@pytest.mark.parametrize("special", [False, True])
def test_the_tags_are_those_that_the_template_names(
    tags: tuple[str, str], template: str, special: bool
) -> None:
    tokenizer = tokenizer_with(special=tags if special else (), plain=() if special else tags)
    found = reasoning_format(template, tokenizer)
    assert isinstance(found, ThinkTags)
    assert (found.opening, found.closing) == tags
    ids = {tokenizer.token_to_id(tag) for tag in tags}
    assert found.marks == (ids if special else set())


@pytest.mark.parametrize(
    ("prompt", "reasoning", "content"),
    [
        ("<|user|>hi<|assistant|><think>\n", "a", "b"),
        ("<|user|>hi<|assistant|>", "", "a</think>b"),
        ("<|user|>say <think><|assistant|>", "", "a</think>b"),
        ("<|user|>hi<|assistant|><think>\n\n</think>\n\n", "", "a</think>b"),
    ],
)
def test_a_prompt_may_open_the_reasoning(prompt: str, reasoning: str, content: str) -> None:
    tokenizer = tokenizer_with(plain=(OPEN, CLOSE))
    found = reasoning_format(THINKING_TEMPLATE, tokenizer)
    ids = tokenizer.encode(prompt.replace("\n", "Ċ")).ids
    assert found is not None
    assert split(found.splitter(ids), "a</think>b") == (reasoning, content)


def test_harmony_is_found_by_its_special_tokens() -> None:
    template = "<|start|>assistant<|channel|>final<|message|>{{ x }}"
    found = reasoning_format(template, tokenizer_with(special=tuple(HARMONY.values())))
    assert isinstance(found, Harmony)
    assert set(found.tokens.values()) == set(HARMONY.values())
    assert reasoning_format(template, tokenizer_with(plain=tuple(HARMONY.values()))) is None


def test_a_template_without_markers_has_no_format() -> None:
    assert reasoning_format("{{ messages[0].content }}", tokenizer_with()) is None
