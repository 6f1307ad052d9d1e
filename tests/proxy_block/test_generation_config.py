"""generation_config as OpenAI's parameters."""

from __future__ import annotations

from typing import Any

import pytest

from contract.generation import openai_parameters
from proxy_block.generation_config import parse_generation_config


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
