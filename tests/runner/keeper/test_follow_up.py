"""Which streams of an engine of another kind go on after a loss."""

from __future__ import annotations

from typing import Any

import pytest

from runner.keeper.follow_up import goes_on

PLAIN = {"model": "it", "prompt": "Once", "stream": True, "temperature": 0.5, "seed": 3}


def test_a_stream_of_one_text_goes_on() -> None:
    assert goes_on(PLAIN)
    assert not goes_on({**PLAIN, "stream": False})
    assert not goes_on({**PLAIN, "n": 2})


@pytest.mark.parametrize(
    "asked",
    [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a"}},
        {"guided_json": {}, "guided_regex": "a"},
        {"guided_regex": "a"},
        {"guided_choice": ["a"]},
        {"guided_grammar": "root ::= 'a'"},
        {"structural_tag": {"type": "structural_tag"}},
        {"tools": [{}]},
        {"stop": ["a"]},
        {"logprobs": 1},
    ],
)
def test_what_depends_on_the_beginning_does_not(asked: dict[str, Any]) -> None:
    assert not goes_on({**PLAIN, **asked})
