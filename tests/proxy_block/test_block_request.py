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


CONFIG = {"generation_config": {"max_new_tokens": 5}}


@pytest.mark.parametrize(
    ("data", "mode", "message"),
    [
        ({"mode": "Chat", "message": "x"}, "chat", "x"),
        ({"mode": "COMPLETIONS", "message": "x"}, "completions", "x"),
        ({"mode": "generate", "prompt": "x", "system_message": "s"}, "completions", "x"),
        ({"mode": "Generate", "message": "x", "files": {}}, "completions", "x"),
        ({"prompt": "x"}, "completions", "x"),
        ({"mode": "chat", "prompt": "x", "files": [], "file": None}, "chat", "x"),
        ({"prompt": {"reply": ""}}, "completions", ""),
    ],
)
def test_bodies_of_aios(data: Any, mode: str, message: str) -> None:
    [question] = questions(parse_data(data))
    assert (question.mode, question.message) == (mode, message)


@pytest.mark.parametrize(
    ("data", "param", "said"),
    [
        ({"mode": "tokens", "message": "x"}, "data.mode", "text, not token ids"),
        ({"mode": "Tokens", "message": "x"}, "data.mode", "text, not token ids"),
        ({"mode": ["chat"], "message": "x"}, "data.mode", "'generate'"),
        ({"gen_params": {}, "message": "x"}, "data.gen_params", "did you mean generation_config?"),
        ({"messages": []}, "data.message", "is required"),
        (
            {"message": "x", "generation_config": {"max_tokens": 5}},
            "data.generation_config.max_tokens",
            "did you mean max_new_tokens?",
        ),
        ({"message": "x", "prompt": "y"}, "data.prompt", "is given beside message"),
        ({"message": "x", "files": {"a": "b"}}, "data.files", "send text in message"),
        ({"prompt": ""}, "data.message", "at least 1"),
    ],
)
def test_other_bodies_are_refused_with_the_right_name(data: Any, param: str, said: str) -> None:
    error = refusal(data)
    assert error["param"] == param
    assert said in error["message"]


def test_a_generation_config_beside_inputs_is_the_default_of_each() -> None:
    own = {"message": "b", "generation_config": {"max_new_tokens": 9, "top_k": -1}}
    inner = {"inputs": ["c"], "generation_config": {"seed": 3}}
    found = questions(parse_data({"inputs": ["a", own, inner], "files": {}, **CONFIG}))
    assert [question.generation_config for question in found] == [
        {"max_new_tokens": 5},
        {"max_new_tokens": 9, "top_k": -1},
        {"max_new_tokens": 5, "seed": 3},
    ]
    assert len(list(questions(parse_data({"inputs": ["a"], "generation_config": None})))) == 1


@pytest.mark.parametrize(
    ("beside", "param"),
    [
        ({"mode": "chat"}, "data.mode"),
        ({"gen_params": {}}, "data.gen_params"),
        ({"generation_config": 5}, "data.generation_config"),
        ({"generation_config": {"top_k": 2000}}, "data.generation_config.top_k"),
    ],
)
def test_what_else_stands_beside_inputs_is_refused(beside: Any, param: str) -> None:
    assert refusal({"inputs": ["a"], **beside})["param"] == param
