"""generation_config as OpenAI's parameters."""

from __future__ import annotations

from typing import Any

import pytest

from contract.generation import openai_parameters
from proxy_block.generation_config import parse_generation_config, with_generation_config


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ({}, {}),
        ({"max_new_tokens": 3, "stop": ["x"]}, {"max_tokens": 3, "stop": ["x"]}),
        ({"do_sample": False, "temperature": 1, "top_k": 5, "top_p": 0.5}, {"temperature": 0}),
        ({"do_sample": True, "top_p": 0.5}, {"top_p": 0.5}),
        ({"top_p": 0, "top_k": 50}, {"top_k": 1}),
        ({"seed": 1, "temperature": None}, {"seed": 1}),
    ],
)
def test_what_the_engine_is_asked_for(config: dict[str, Any], parameters: dict[str, Any]) -> None:
    assert openai_parameters(parse_generation_config(config)) == parameters


@pytest.mark.parametrize(
    ("request_says", "asked"),
    [
        ({}, {"max_tokens": 9, "temperature": 0.2}),
        ({"temperature": 1.5}, {"max_tokens": 9, "temperature": 1.5}),
        ({"temperature": None}, {"max_tokens": 9, "temperature": 0.2}),
        ({"max_tokens": 3}, {"max_tokens": 3, "temperature": 0.2}),
        ({"max_completion_tokens": 3}, {"max_completion_tokens": 3, "temperature": 0.2}),
    ],
)
def test_an_openai_request_gets_the_blocks_where_it_says_nothing(
    request_says: dict[str, Any], asked: dict[str, Any]
) -> None:
    defaults = {"max_new_tokens": 9, "temperature": 0.2}
    assert with_generation_config({"model": "m", **request_says}, defaults) == {
        "model": "m",
        **asked,
    }


@pytest.mark.parametrize(("given", "greedy"), [({}, True), ({"top_k": 5}, False)])
def test_a_greedy_block_samples_when_it_is_asked_to(given: dict[str, Any], greedy: bool) -> None:
    assert ("temperature" in with_generation_config(given, {"do_sample": False})) == greedy
