"""What no client means: each is refused by the field's name."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from runner.master.api.messages import MAX_MESSAGES
from tests.runner.master.scripted_engine import ScriptedEngine
from tests.runner.master.serving import MODEL

USER = {"role": "user", "content": "x"}
HALF = "\ud800"
HUGE = 2**70


def refusal(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    content = json.dumps({"model": MODEL, **body})  # surrogates as escapes
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{url}{path}", content=content, headers=headers, timeout=60)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [USER, {"role": "user", "content": HALF}]}, "messages[1].content"),
        ({"messages": [{"role": HALF, "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": f"a{HALF}"}]}]},
            "messages[0].content[0].text",
        ),
        ({"messages": [USER], "chat_template_kwargs": {"a": HALF}}, "chat_template_kwargs.a"),
        ({"messages": [USER], "chat_template_kwargs": {HALF: 1}}, "chat_template_kwargs"),
        ({"messages": [USER], "stop": ["a", HALF]}, "stop[1]"),
        ({"messages": [USER], HALF: 1}, None),
    ],
)
def test_half_a_surrogate_pair_is_named(url: str, body: dict[str, Any], param: str | None) -> None:
    error = refusal(url, "/v1/chat/completions", body)
    assert error["param"] == param
    assert "half of a surrogate pair" in error["message"]


@pytest.mark.parametrize("value", [HUGE, -HUGE, 2**63])
@pytest.mark.parametrize(
    "field",
    ["max_tokens", "seed", "top_k", "n", "temperature", "top_p", "min_p", "repetition_penalty",
     "presence_penalty", "frequency_penalty", "top_logprobs"],
)  # fmt: skip
def test_numbers_beyond_64_bits_are_named(url: str, field: str, value: int) -> None:
    error = refusal(url, "/v1/chat/completions", {"messages": [USER], field: value})
    assert error["param"] == field


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": [HUGE]}, "prompt"),
        ({"prompt": "x", "stop_token_ids": [HUGE]}, "stop_token_ids"),
        ({"prompt": "x", "logit_bias": {str(HUGE): 1}}, "logit_bias"),
        ({"prompt": "x", "logit_bias": {"5": HUGE}}, "logit_bias"),
        ({"prompt": "x", "logprobs": HUGE}, "logprobs"),
    ],
)
def test_ids_beyond_64_bits_are_named(
    url: str, engine: ScriptedEngine, body: dict[str, Any], param: str
) -> None:
    assert refusal(url, "/v1/completions", body)["param"] == param
    assert not engine.requests


@pytest.mark.parametrize(
    "messages",
    [[USER] * 20_000, [{"role": "user", "content": [{"type": "text", "text": "x"}] * 20_000}]],
)
def test_more_messages_than_any_conversation_has(
    url: str, engine: ScriptedEngine, messages: list[Any]
) -> None:
    error = refusal(url, "/v1/chat/completions", {"messages": messages})
    assert error["param"] == "messages"
    assert f"at most {MAX_MESSAGES}" in error["message"]
    assert not engine.requests


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": [USER]}, "messages"),
        ("/v1/completions", {"prompt": "hello"}, "prompt"),
    ],
)
def test_a_token_that_the_model_does_not_know_is_named_with_its_file(
    url: str, engine: ScriptedEngine, body: dict[str, Any], path: str, param: str
) -> None:
    """A tokenizer file that has more than the model has rows for."""
    engine.vocabulary_size = 1
    error = refusal(url, path, body)
    assert error["param"] == param
    assert "in tokenizer.json, and the model knows 1 ids" in error["message"]
    assert not engine.requests


@pytest.mark.parametrize(
    ("body", "param"),
    [({"prompt": [5000]}, "prompt"), ({"prompt": "x", "logit_bias": {"5000": 1}}, "logit_bias")],
)
def test_ids_that_the_model_does_not_know_are_named(
    url: str, engine: ScriptedEngine, body: dict[str, Any], param: str
) -> None:
    engine.vocabulary_size = 5000
    error = refusal(url, "/v1/completions", body)
    assert error["param"] == param
    assert "= 5000: must be a token id below the vocabulary's size 5000" in error["message"]
