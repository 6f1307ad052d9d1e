"""The forms of `data`, and what is refused of them. Over HTTP they are in test_conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as make

from proxy_block.block_request import parse_data, questions
from web.errors import ApiError

JSON_VALUES = make.recursive(
    make.none() | make.booleans() | make.integers() | make.floats() | make.text(),
    lambda inner: (
        make.lists(inner, max_size=4)
        | make.dictionaries(
            make.sampled_from(["message", "mode", "inputs", "reply", "usage", "x"]), inner
        )
    ),
    max_leaves=12,
)


def refusal(data: Any) -> dict[str, Any]:
    with pytest.raises(ApiError) as raised:
        parse_data(data)
    assert raised.value.status == 400
    error: dict[str, Any] = raised.value.body["error"]
    return error


@given(JSON_VALUES)
def test_anything_is_read_or_refused_by_name(data: Any) -> None:
    refused: dict[str, Any] = {}
    messages = ["x"]
    try:
        messages = [question.message for question in questions(parse_data(data))]
    except ApiError as error:
        refused = error.body["error"]
    assert messages
    assert all(isinstance(message, str) for message in messages)
    assert refused.get("param", "data").startswith("data")
    assert refused.get("type", "invalid_request_error") == "invalid_request_error"


@pytest.mark.parametrize("data", [{"reply": ""}, {"message": {"generated": ""}}])
def test_a_block_that_put_out_nothing_is_a_question_all_the_same(data: Any) -> None:
    assert [question.message for question in questions(parse_data(data))] == [""]


@pytest.mark.parametrize("data", ["", {"message": ""}, {"mode": "chat"}])
def test_a_client_must_say_something(data: Any) -> None:
    assert "message" in refusal(data)["message"]


def test_null_means_left_out() -> None:
    data = {"message": "x", "mode": None, "generation_config": {"temperature": None}}
    [question] = questions(parse_data(data))
    assert (question.mode, question.generation_config) == ("chat", {})


def nested(depth: int) -> Any:
    data: Any = "x"
    for _ in range(depth):
        data = {"inputs": [data]}
    return data


def test_batches_are_bounded_in_depth_and_size() -> None:
    assert len(list(questions(parse_data(nested(2))))) == 1
    assert "nested deeper than 2" in refusal(nested(3))["message"]
    assert len(list(questions(parse_data(["x"] * 64)))) == 64
    assert "1 to 64 items, not 65" in refusal(["x"] * 65)["message"]
    assert "at most 64 questions, not 80" in refusal([["x"] * 40] * 2)["message"]


def test_json_in_json_is_bounded_too() -> None:
    text = "x"
    for _ in range(10):
        text = json.dumps([text])
    assert "nested deeper" in refusal(text)["message"]
    output: Any = "x"
    for _ in range(10):
        output = {"reply": output}
    assert "nested deeper" in refusal(output)["message"]
    assert "nested deeper" not in str(parse_data("[" * 100_000))


def test_two_texts_at_once_are_refused() -> None:
    error = refusal({"message": "a", "reply": "b"})
    assert (error["param"], error["value"]) == ("data.reply", "'b'")


def test_a_batch_has_nothing_beside_it() -> None:
    assert refusal({"inputs": ["x"], "mode": "chat"})["param"] == "data.mode"


@pytest.mark.parametrize("message", [{"reply": 1}, {"reply": "a", "x": 1}, {}, [], None])
def test_a_message_is_a_text_or_an_output(message: Any) -> None:
    assert refusal({"message": message})["param"] == "data.message"
