from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from openai import OpenAI

from runner.master.api.answers import completion_logprobs
from runner.master.engine.requests import TokenEvent
from runner.master.text.model_text import ModelText
from tests.runner.master.conftest import ANSWER
from tests.runner.master.scripted_engine import ScriptedEngine
from tests.runner.master.serving import MODEL

PROMPT = "The capital of France is"
AIOS = {
    "prompt": "The capital of France is",
    "max_new_tokens": 100,
    "do_sample": False,
    "top_k": 50,
    "top_p": 0.95,
    "temperature": 1.0,
    "enable_streaming": False,
}


def test_a_prompt_gets_sixteen_tokens_unless_it_asks_for_more(
    client: OpenAI, engine: ScriptedEngine, demo_text: ModelText
) -> None:
    client.completions.create(model=MODEL, prompt=PROMPT)
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=100)
    assert [request.max_new_tokens for request in engine.requests] == [16, 100]
    assert engine.requests[0].prompt_ids == demo_text.encode_prompt(PROMPT)
    assert answer.choices[0].text == ANSWER
    assert answer.choices[0].finish_reason == "stop"


def test_every_form_of_prompt(client: OpenAI, engine: ScriptedEngine, demo_text: ModelText) -> None:
    ids = list(demo_text.encode_prompt(PROMPT))
    prompts: list[Any] = [PROMPT, [PROMPT, "x"], ids, [ids, ids[:2]]]
    for prompt in prompts:
        client.completions.create(model=MODEL, prompt=prompt)
    x = demo_text.encode_prompt("x")
    expected = [tuple(ids), tuple(ids), x, tuple(ids), tuple(ids), tuple(ids[:2])]
    assert [request.prompt_ids for request in engine.requests] == expected


def test_choices_of_several_prompts_lie_in_order(
    client: OpenAI, engine: ScriptedEngine, demo_text: ModelText
) -> None:
    def script(request: Any) -> list[int]:
        prompt = demo_text.decode(request.prompt_ids)
        return [*demo_text.tokenizer.encode(f"{prompt}{request.choice}").ids, *demo_text.eos_ids]

    engine.script = script
    answer = client.completions.create(model=MODEL, prompt=["a", "b"], n=2, echo=True)
    assert [choice.text for choice in answer.choices] == ["aa0", "aa1", "bb0", "bb1"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    streamed = [""] * 4
    stream = client.completions.create(
        model=MODEL, prompt=["a", "b"], n=2, echo=True, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    for chunk in stream:
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == ["aa0", "aa1", "bb0", "bb1"]
    assert chunk.usage == answer.usage


def test_log_probabilities_and_where_their_tokens_lie(client: OpenAI) -> None:
    arguments: Any = {
        "model": MODEL,
        "prompt": PROMPT,
        "max_tokens": 50,
        "logprobs": 2,
        "stop": ".",
    }
    whole = client.completions.create(**arguments).choices[0]
    assert whole.text == ANSWER[: ANSWER.index(".")]
    assert whole.logprobs is not None
    assert whole.logprobs.tokens is not None
    assert whole.logprobs.text_offset is not None
    assert whole.logprobs.text_offset[:2] == [0, len(whole.logprobs.tokens[0])]
    assert whole.logprobs.token_logprobs == [-0.5] * len(whole.logprobs.tokens)
    tokens, offsets = [], []
    for chunk in client.completions.create(stream=True, **arguments):
        logprobs = chunk.choices[0].logprobs
        assert logprobs is not None
        tokens += logprobs.tokens or []
        offsets += logprobs.text_offset or []
    assert (tokens, offsets) == (whole.logprobs.tokens, whole.logprobs.text_offset)


def test_usage_tells_what_the_first_choice_of_each_prompt_reused(
    client: OpenAI, engine: ScriptedEngine
) -> None:
    for engine.reused in (0, 3):
        for echo, max_tokens in ((False, 9), (True, 0)):
            asked: Any = {"model": MODEL, "prompt": ["a b", "c d"], "n": 2, "echo": echo}
            asked["max_tokens"] = max_tokens
            whole = client.completions.create(**asked)
            assert whole.usage is not None
            assert whole.usage.prompt_tokens_details is not None
            assert whole.usage.prompt_tokens_details.cached_tokens == 2 * engine.reused
            options: Any = {"include_usage": True}
            *_, last = client.completions.create(**asked, stream=True, stream_options=options)
            assert last.usage == whole.usage


@pytest.mark.parametrize("max_tokens", [0, 1, 50])
@pytest.mark.parametrize("as_ids", [False, True])
def test_echo_with_log_probabilities_tells_the_prompt(
    client: OpenAI, demo_text: ModelText, max_tokens: int, *, as_ids: bool
) -> None:
    """The body that lm-evaluation-harness sends; it cuts the last token off."""
    prompt = "Größe 👍🏽 of\n\nthe  sun"
    ids = list(demo_text.encode_prompt(prompt))
    arguments: Any = {
        "model": MODEL,
        "prompt": [ids] if as_ids else prompt,
        "temperature": 0,
        "max_tokens": max_tokens,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    answer = client.completions.create(**arguments)
    whole = answer.choices[0]
    generated = len(answer.choices[0].logprobs.tokens) - len(ids)
    assert whole.text == prompt + ANSWER[: len(whole.text) - len(prompt)]
    assert whole.finish_reason == ("length" if max_tokens < 50 else "stop")
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.usage.completion_tokens == min(max_tokens, generated + 1)
    logprobs = whole.logprobs
    assert logprobs.token_logprobs == [None] + [-0.5] * (len(ids) + generated - 1)
    assert logprobs.top_logprobs[0] is None
    assert all(max(best.values()) == -0.5 for best in logprobs.top_logprobs[1:])
    assert logprobs.tokens[: len(ids)] == [
        demo_text.token_bytes.of(token_id).decode("utf-8", "replace") for token_id in ids
    ]
    offsets = [*logprobs.text_offset, len(whole.text)]
    for place, token in enumerate(logprobs.tokens):
        if "\ufffd" not in token:
            assert whole.text[offsets[place] :].startswith(token)
    assert offsets == sorted(offsets)
    streamed = [chunk.choices[0] for chunk in client.completions.create(stream=True, **arguments)]
    assert "".join(choice.text for choice in streamed) == whole.text
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        found = [item for choice in streamed for item in getattr(choice.logprobs, name) or []]
        assert found == getattr(logprobs, name)


def test_echo_of_nothing_new_is_the_prompt(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["a", "bc"], max_tokens=0, echo=True)
    assert [choice.text for choice in answer.choices] == ["a", "bc"]
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_of_several_ids_with_one_text_the_likeliest_counts() -> None:
    """Whoever looks whether the token was the best one compares it with the largest."""
    token_bytes: Any = SimpleNamespace(of=lambda token_id: bytes([0xF0 + token_id]))
    event = TokenEvent(2, -4.0, ((0, -0.1), (1, -2.5)))
    logprobs = completion_logprobs([event], token_bytes, [0])
    assert logprobs["top_logprobs"] == [{"\ufffd": -0.1}]


def test_the_sampled_token_is_among_the_best_ones() -> None:
    token_bytes: Any = SimpleNamespace(of=lambda token_id: b"abcd"[token_id : token_id + 1])
    best = ((0, -0.1), (1, -2.5))
    events = [TokenEvent(0, -0.1, best), TokenEvent(3, -4.0, best)]
    logprobs = completion_logprobs(events, token_bytes, [0, 1])
    assert logprobs["top_logprobs"] == [{"a": -0.1, "b": -2.5}, {"a": -0.1, "b": -2.5, "d": -4.0}]
    without = completion_logprobs([TokenEvent(3, -4.0)], token_bytes, [0])
    assert without["top_logprobs"] is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": "word " * 2000}, "prompt"),
    ],
)
def test_what_is_refused_is_named(
    url: str, engine: ScriptedEngine, changes: dict[str, Any], field: str
) -> None:
    body = {"model": MODEL, "prompt": PROMPT, **changes}
    response = httpx.post(f"{url}/v1/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert engine.requests == []


def test_the_aios_body_is_answered_with_its_output(url: str, engine: ScriptedEngine) -> None:
    response = httpx.post(f"{url}/generate", json=AIOS)
    assert response.status_code == 200
    assert response.json()["output"] == ANSWER
    assert response.json()["finish_reason"] == "stop"
    sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0, 50, 0.95)
    assert engine.requests[0].max_new_tokens == 100


def test_streaming_sends_pieces_and_ends_with_the_reason(url: str) -> None:
    body = {**AIOS, "enable_streaming": True}
    events = httpx.post(f"{url}/generate", json=body).text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    documents = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert "".join(document["output"] for document in documents) == ANSWER
    assert len(documents) > 5
    assert documents[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["x"]}, "prompt"),
        ({"prompt": "x", "do_sample": "false"}, "do_sample"),
        ({"prompt": "x", "max_new_tokens": 1.5}, "max_new_tokens"),
        ({"prompt": "x", "max_tokens": 5}, "max_tokens"),
        ({"prompt": "word " * 2000}, "prompt"),
    ],
)
def test_what_generate_refuses_is_named(url: str, body: dict[str, Any], field: str) -> None:
    response = httpx.post(f"{url}/generate", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert field in response.json()["error"]["message"]
