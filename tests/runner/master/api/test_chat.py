from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from contract.refusal_codes import NO_CHAT_TEMPLATE
from runner.errors import DeadlineExceeded, EngineFull, NotServing
from runner.master.text.model_text import ModelText
from tests.runner.master.conftest import ANSWER
from tests.runner.master.scripted_engine import ScriptedEngine
from tests.runner.master.serving import DEPLOYMENT, MODEL, served_engine

MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]


def test_the_official_client_gets_an_answer(
    client: OpenAI, engine: ScriptedEngine, demo_text: ModelText
) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(demo_text.encode_chat(MESSAGES))
    assert answer.usage.completion_tokens == len(demo_text.tokenizer.encode(ANSWER).ids) + 1
    # Without max_tokens the rest of the context is the bound.
    [request] = engine.requests
    assert request.max_new_tokens == 512 - len(request.prompt_ids)
    assert request.prompt_ids == demo_text.encode_chat(MESSAGES)


def test_a_stream_joins_to_the_same_answer_in_several_chunks(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=DEPLOYMENT, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == ANSWER
    assert sum(map(bool, texts)) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 5
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_events_are_sent_as_they_come_and_end_with_done(url: str, engine: ScriptedEngine) -> None:
    engine.delay_s = 0.01
    body = {"model": MODEL, "messages": MESSAGES, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)
    json.loads(lines[0].removeprefix("data: "))


def test_only_a_turn_ends_at_the_tokenizers_own_end_token(
    engine: ScriptedEngine, demo_text: ModelText
) -> None:
    text = replace(demo_text, eos_ids=(0,), chat_eos_ids=(0, *demo_text.eos_ids))
    said, invented = (demo_text.tokenizer.encode(part).ids for part in ("Paris.", " And me?"))
    engine.script = lambda _request: [*said, *demo_text.eos_ids, *invented, 0]
    with served_engine(engine, text) as url:
        body = {"model": MODEL, "messages": MESSAGES}
        chat = httpx.post(f"{url}/v1/chat/completions", json=body).json()
        completion = httpx.post(
            f"{url}/v1/completions", json={"model": MODEL, "prompt": "x", "max_tokens": 99}
        ).json()
    assert chat["choices"][0]["message"]["content"] == "Paris."
    assert chat["choices"][0]["finish_reason"] == "stop"
    assert chat["usage"]["completion_tokens"] == len(said) + 1
    assert completion["choices"][0]["text"] == "Paris. And me?"


def test_several_choices_side_by_side(
    client: OpenAI, engine: ScriptedEngine, demo_text: ModelText
) -> None:
    texts = ["first", "second answer", "third"]
    engine.script = lambda request: [
        *demo_text.tokenizer.encode(texts[request.choice]).ids,
        demo_text.eos_ids[0],
    ]
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, n=3)
    assert [choice.message.content for choice in answer.choices] == texts
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(model=MODEL, messages=MESSAGES, n=3, stream=True):
        choice = chunk.choices[0]
        streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_log_probabilities_name_tokens_and_their_bytes(client: OpenAI) -> None:
    arguments: Any = {"model": MODEL, "messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**arguments).choices[0].logprobs
    assert whole is not None
    assert whole.content is not None
    joined = b"".join(bytes(entry.bytes or []) for entry in whole.content)
    assert joined.decode() == ANSWER
    assert all(len(entry.top_logprobs) == 2 for entry in whole.content)
    streamed = [
        entry
        for chunk in client.chat.completions.create(stream=True, **arguments)
        if chunk.choices and chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert streamed == whole.content


@pytest.mark.parametrize("max_tokens", [1, 3])
def test_a_last_token_without_text_keeps_its_log_probabilities(
    client: OpenAI, engine: ScriptedEngine, demo_text: ModelText, max_tokens: int
) -> None:
    special = demo_text.tokenizer.token_to_id("<|im_start|>")
    assert special is not None
    ids = [*demo_text.tokenizer.encode("Paris is").ids[:2], special][-max_tokens:]
    engine.script = lambda _request: ids
    stream = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=max_tokens,
        stream=True,
        logprobs=True,
        top_logprobs=1,
    )
    entries = [
        entry.token
        for chunk in stream
        if chunk.choices[0].logprobs is not None
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert entries == [demo_text.token_bytes.of(token_id).decode() for token_id in ids]


def test_a_stop_string_ends_text_generation_and_count(
    client: OpenAI, engine: ScriptedEngine, demo_text: ModelText
) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, stop=["capital of"])
    assert answer.choices[0].message.content == "Paris → the "
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens < len(demo_text.tokenizer.encode(ANSWER).ids)
    assert engine.open == 0


def test_length_is_the_reason_when_max_tokens_are_reached(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_the_asynchronous_client_streams_many_at_once(url: str, engine: ScriptedEngine) -> None:
    engine.delay_s = 0.001

    async def one(client: AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client) for _ in range(32)))

    assert asyncio.run(all_of_them()) == [ANSWER] * 32


def test_content_parts_of_type_text_are_joined(client: OpenAI, engine: ScriptedEngine) -> None:
    parts: Any = [{"type": "text", "text": "What is "}, {"type": "text", "text": "1+1?"}]
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
    plain: Any = [{"role": "user", "content": "What is 1+1?"}]
    client.chat.completions.create(model=MODEL, messages=plain)
    assert engine.requests[0].prompt_ids == engine.requests[1].prompt_ids


def test_extensions_and_ignored_fields_are_accepted(
    client: OpenAI, engine: ScriptedEngine, demo_text: ModelText
) -> None:
    client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        user="someone",
        metadata={},
        store=False,
        seed=7,
        temperature=0.5,
        presence_penalty=0.5,
        logit_bias={"5": -100},
        max_completion_tokens=3,
        extra_body={
            "top_k": 5,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "stop_token_ids": [9],
            "ignore_eos": True,
        },
    )
    sampling = engine.requests[0].sampling
    assert (sampling.seed, sampling.temperature, sampling.top_k) == (7, 0.5, 5)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.1)
    assert sampling.logit_bias == {5: -100}
    assert sampling.stop_token_ids == (9,)
    assert engine.requests[0].max_new_tokens == 3


REFUSED = [
    ({"reasoning_effort": "low"}, "reasoning_effort", "not supported"),
    ({"add_generation_prompt": False}, "add_generation_prompt", "the assistant answers"),
    ({"min_tokens": 1}, "min_tokens", "not supported"),
    ({"metadata": {"a": "b"}}, "metadata", "not stored"),
    ({"store": True}, "store", "not stored"),
    ({"service_tier": "flex"}, "service_tier", "one tier"),
    ({"prompt_cache_retention": "24h"}, "prompt_cache_retention", "not kept"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
        "not padded",
    ),
    ({"n": 0}, "n", "from 1 to 16"),
    ({"n": True}, "n", "whole number"),
    ({"temperature": "hot"}, "temperature", "number"),
    ({"temperature": 3}, "temperature", "from 0"),
    ({"top_p": -0.1}, "top_p", "above 0"),
    ({"top_p": 0, "top_k": -2}, "top_k", "from 0"),
    ({"top_logprobs": 2}, "top_logprobs", "logprobs true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "0 to 20"),
    ({"stop": [""]}, "stop", "characters"),
    ({"stop": 5}, "stop", "string"),
    ({"seed": -(2**63) - 1}, "seed", "0 to"),
    ({"seed": 1e30}, "seed", "0 to"),
    ({"n": 1.5}, "n", "whole number"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_tokens": 512}, "max_tokens", "at most"),
    ({"max_tokens": 2, "max_completion_tokens": 2}, "max_tokens", "beside"),
    ({"temperature": 10**60}, "temperature", ""),
    ({"seed": 10**60}, "seed", "0 to"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias", "vocabulary"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream true"),
    ({"surprise": 1}, "surprise", "not a field"),
    ({"surprise": None}, "surprise", "not a field"),
    ({"messages": []}, "messages", "at least one"),
    ({"messages": "hello"}, "messages", "list"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "string"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "string"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0]",
        "text only",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "mark": 1}]}]},
        "messages[0].content[0].mark",
        "not a field",
    ),
    (
        {"messages": [{"role": "assistant", "content": "x", "annotations": [{"type": "url"}]}]},
        "messages[0].annotations",
        "does not search",
    ),
    ({"chat_template_kwargs": [1]}, "chat_template_kwargs", "mapping"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", "request's"),
    ({"chat_template_kwargs": {"eos_token": ""}}, "chat_template_kwargs.eos_token", "request's"),
    ({"chat_template_kwargs": {"range": 1}}, "chat_template_kwargs.range", "request's"),
    ({"chat_template_kwargs": {"x": "x" * 16_384}}, "chat_template_kwargs", "16384 characters"),
]


@pytest.mark.parametrize(("changes", "field", "rule"), REFUSED)
def test_what_is_refused_names_field_and_rule(
    url: str, engine: ScriptedEngine, changes: dict[str, Any], field: str, rule: str
) -> None:
    body = {"model": MODEL, "messages": MESSAGES, **changes}
    response = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == field
    assert field in error["message"]
    assert rule in error["message"]
    assert error["type"] == "invalid_request_error"
    assert engine.requests == []


def test_the_clients_own_error_classes(client: OpenAI, engine: ScriptedEngine) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=9)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    long: Any = [{"role": "user", "content": "word " * 2000}]
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model=MODEL, messages=long)
    assert too_long.value.code == "context_length_exceeded"
    assert too_long.value.param == "messages"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (EngineFull("64 requests wait already", retry_after_s=3), 429, "engine_full"),
        (NotServing("the rank group is forming: rank 1 has not joined"), 503, "not_serving"),
        (DeadlineExceeded("600 s have passed"), 504, "deadline_exceeded"),
    ],
)
def test_a_refusal_has_its_status_before_a_stream_begins(
    url: str, engine: ScriptedEngine, failure: Any, status: int, code: str, stream: bool
) -> None:
    engine.failure = failure
    body = {"model": MODEL, "messages": MESSAGES, "stream": stream}
    response = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert str(failure) in response.json()["error"]["message"]
    if status == 429:
        assert response.headers["retry-after"] == "3"


def test_an_error_inside_a_stream_is_an_event_and_its_end(
    url: str, client: OpenAI, engine: ScriptedEngine
) -> None:
    engine.failure, engine.fail_after = NotServing("the rank group failed for good"), 4
    body = {"model": MODEL, "messages": MESSAGES, "stream": True}
    lines = httpx.post(f"{url}/v1/chat/completions", json=body).text.strip().split("\n\n")
    assert "Paris" in lines[0] + lines[1]
    last = json.loads(lines[-1].removeprefix("data: "))
    assert last["error"]["message"] == "the rank group failed for good"
    with pytest.raises(openai.APIError, match="failed for good"):
        list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
    assert engine.open == 0


def test_before_the_group_has_formed_the_reason_is_given(url: str, engine: ScriptedEngine) -> None:
    engine.max_model_len, engine.reason = None, "waiting for rank 1"
    body = {"model": MODEL, "messages": MESSAGES}
    response = httpx.post(f"{url}/v1/chat/", json=body)
    assert response.status_code == 503
    assert response.json()["error"]["message"].endswith("waiting for rank 1")


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, {}),
        ({"generation_config": {"max_new_tokens": 3, "seed": 4}}, {"max_tokens": 3, "seed": 4}),
        ({"generation_config": {"do_sample": False, "top_k": 5}}, {"temperature": 0}),
        ({"generation_config": {"max_new_tokens": 3}, "max_tokens": 4}, {"max_tokens": 4}),
        (
            {"generation_config": {"max_new_tokens": 3}, "max_completion_tokens": 4},
            {"max_tokens": 4},
        ),
    ],
)
def test_the_chat_of_aios_is_the_same_request(
    url: str, engine: ScriptedEngine, given: dict[str, Any], asked: dict[str, Any]
) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    answer = httpx.post(f"{url}/v1/chat/", json={"messages": messages, "seed": 4, **given})
    assert answer.json()["model"] == DEPLOYMENT
    same = {"model": MODEL, "messages": messages, "seed": 4, **asked}
    httpx.post(f"{url}/v1/chat/completions", json=same)
    first, second = engine.requests
    assert replace(first, request_id="") == replace(second, request_id="")


def test_the_chat_of_aios_streams(url: str) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    body = {"messages": messages, "enable_streaming": True}
    body |= {"stream_options": {"include_usage": True}}
    assert httpx.post(f"{url}/v1/chat/", json=body).text.endswith("data: [DONE]\n\n")
    contrary = httpx.post(
        f"{url}/v1/chat/", json={**body, "enable_streaming": False, "stream": True}
    )
    assert contrary.json()["error"]["param"] == "enable_streaming"
    wrong = httpx.post(f"{url}/v1/chat/", json={**body, "gen_params": {}})
    assert "did you mean generation_config?" in wrong.json()["error"]["message"]


def test_a_base_model_refuses_a_chat_by_a_code(
    engine: ScriptedEngine, demo_text: ModelText
) -> None:
    with served_engine(engine, replace(demo_text, chat_template=None)) as url:
        answer = httpx.post(f"{url}/v1/chat/", json={"messages": MESSAGES})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (
        400,
        NO_CHAT_TEMPLATE,
        "messages",
    )
    assert "mode completions" in error["message"]
