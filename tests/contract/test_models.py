"""What both the plan and the stages read out of a configuration."""

from __future__ import annotations

import pytest

from contract.models import DEMO_MODEL, DEMO_TITLE, longest_text, model_title

YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        (None, 32768),
        ({"rope_type": "default", "rope_theta": 1e4}, 32768),
        ({"rope_type": "linear", "factor": 4.0}, 32768),
        (YARN | {"original_max_position_embeddings": 32768}, 131072),
        ({"type": "yarn", "factor": 4}, 131072),
        (YARN | {"original_max_position_embeddings": 8192}, 32768),
        (YARN | {"original_max_position_embeddings": 4096}, 32768),
        ({"full_attention": YARN, "sliding_attention": {"rope_type": "default"}}, 131072),
        (YARN | {"factor": None}, 32768),
        ("nonsense", 32768),
    ],
)
def test_yarn_scales_what_a_model_can_hold(rope: object, longest: int) -> None:
    assert longest_text(32768, rope) == longest


@pytest.mark.parametrize(
    ("name", "title"),
    [
        (DEMO_MODEL, DEMO_TITLE),
        ("microsoft/Phi-3-mini-128k-instruct", "Phi-3-mini-128k-instruct"),
        ("/models/llama/", "llama"),
        ("gpt2", "gpt2"),
        ("/", "/"),
    ],
)
def test_what_people_read(name: str, title: str) -> None:
    assert model_title(name) == title
