from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.master.text.stop_strings import StopStrings


def shown(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopStrings(stops)
    text = ""
    for piece in pieces:
        text += matcher.push(piece)
        if matcher.matched:
            return text, True
    return text + matcher.flush(), False


def test_a_match_across_the_border_of_two_pieces_ends_the_text_before_it() -> None:
    assert shown(["END"], ["one E", "N", "D two"]) == ("one ", True)


def test_text_that_may_begin_a_stop_string_is_held_back_until_certain() -> None:
    matcher = StopStrings(["END"])
    assert matcher.push("x EN") == "x "
    assert matcher.push("C") == "ENC"
    assert matcher.push("E") == ""
    assert matcher.flush() == "E"


def test_the_match_that_ends_first_wins() -> None:
    assert shown(["abcd", "bc"], ["xabcd"]) == ("xa", True)
    assert shown(["bc", "abc"], ["xabcd"]) == ("x", True)


def test_without_stop_strings_nothing_is_held_back() -> None:
    assert StopStrings([]).push("abc") == "abc"


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 30), max_size=5),
)
def test_the_result_does_not_depend_on_the_pieces(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(borders)]
    expected = shown(stops, list(text))
    assert shown(stops, pieces) == expected
    if not expected[1]:
        assert expected[0] == text
        assert not any(stop in text for stop in stops)


@pytest.mark.parametrize("stop", ["\n\n", "é", "```"])
def test_repeated_beginnings_do_not_hide_a_match(stop: str) -> None:
    assert shown([stop], list("x" + stop[0] + stop)) in [
        ("x" + stop[0], True),
        ("x", True),
    ]
