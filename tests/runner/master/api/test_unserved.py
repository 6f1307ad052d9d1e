"""What asks for nothing passes and changes nothing; the rest is refused by its name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from runner.master.api.unserved import CHAT, COMPLETION, MESSAGE, PART
from runner.master.engine.requests import GenerationRequest
from runner.master.text.chat_template import ChatTemplate
from runner.master.text.model_text import ModelText
from tests.compatibility_page import compatibility_page
from tests.runner.master.conftest import ANSWER
from tests.runner.master.scripted_engine import ScriptedEngine
from tests.runner.master.serving import MODEL, served_engine
from web.unserved import Table

Document = dict[str, Any]
QUESTION: Document = {"role": "user", "content": "Hi"}
CHAT_PATH, COMPLETIONS_PATH = "/v1/chat/completions", "/v1/completions"


def chat(fields: Document) -> tuple[str, Document]:
    return CHAT_PATH, {"model": MODEL, "messages": [QUESTION], **fields}


def completion(fields: Document) -> tuple[str, Document]:
    return COMPLETIONS_PATH, {"model": MODEL, "prompt": "Hi", **fields}


def message(fields: Document) -> tuple[str, Document]:
    answer = {"role": "assistant", "content": "Hello.", **fields}
    return chat({"messages": [QUESTION, answer, QUESTION]})


def part(fields: Document) -> tuple[str, Document]:
    parts = [{"type": "text", "text": "Hi", **fields}]
    return chat({"messages": [{"role": "user", "content": parts}]})


Maker = Callable[[Document], tuple[str, Document]]
TABLES: dict[str, tuple[Table, Maker, str]] = {
    "chat": (CHAT, chat, ""),
    "completion": (COMPLETION, completion, ""),
    "message": (MESSAGE, message, "messages[1]."),
    "part": (PART, part, "messages[0].content[0]."),
}
OTHER_VALUES: list[Any] = [True, False, 0, 1, 2, "", "x", [], ["x"], {}, {"x": 1}]


def asked(engine: ScriptedEngine, url: str, made: tuple[str, Document]) -> GenerationRequest:
    """What the engine is asked for by this request; its deadline is a matter of the clock."""
    path, document = made
    response = httpx.post(url + path, json=document)
    assert response.status_code == 200, response.text
    return replace(engine.requests[-1], deadline_s=0.0)


def harmless(table: Table) -> Iterator[tuple[str, Any]]:
    for name, row in table.items():
        for value in (None, *(OTHER_VALUES if row.anything else row.nothing)):
            yield name, value


@pytest.mark.parametrize("kind", TABLES)
def test_what_asks_for_nothing_changes_nothing(url: str, engine: ScriptedEngine, kind: str) -> None:
    table, made, _ = TABLES[kind]
    # Without one each request draws its own.
    assert httpx.post(f"{url}/set_config", json={"seed": 5}).status_code == 200
    plain = asked(engine, url, made({}))
    for name, value in harmless(table):
        assert asked(engine, url, made({name: value})) == plain, (name, value)


@pytest.mark.parametrize("kind", TABLES)
def test_whatever_else_a_field_says_is_refused_by_its_name(
    url: str, engine: ScriptedEngine, kind: str
) -> None:
    table, made, where = TABLES[kind]
    for name, row in table.items():
        for value in OTHER_VALUES:
            if row.why is None or row.asks_nothing(value):
                continue
            path, document = made({name: value})
            response = httpx.post(url + path, json=document)
            assert response.status_code == 400, (name, value)
            error = response.json()["error"]
            assert error["param"] == where + name
            assert row.why in error["message"]
    assert engine.requests == []


def test_no_log_probabilities_are_not_those_of_the_token_alone(
    url: str, engine: ScriptedEngine
) -> None:
    found = [
        asked(engine, url, completion({"logprobs": value})).sampling.logprobs
        for value in (False, 0, 1.0)
    ]
    assert found == [-1, 0, 1]
    assert asked(engine, url, chat({"top_logprobs": 0})).sampling.logprobs == -1


@pytest.mark.parametrize("made", [chat, completion])
def test_a_nucleus_of_nothing_is_one_token(url: str, engine: ScriptedEngine, made: Maker) -> None:
    sampling = asked(engine, url, made({"top_p": 0, "top_k": 40, "temperature": 0.5})).sampling
    assert (sampling.top_k, sampling.top_p, sampling.temperature) == (1, 1.0, 0.5)


def test_whole_floats_are_whole_numbers(url: str, engine: ScriptedEngine) -> None:
    fields = {"max_tokens": 16.0, "n": 2.0, "seed": 5.0, "top_k": 3.0, "stop_token_ids": [9.0]}
    request = asked(engine, url, completion(fields))
    assert len(engine.requests) == 2
    shown = json.dumps([request.max_new_tokens, request.sampling.to_json()])
    assert '"seed": 5,' in shown
    assert '"top_k": 3,' in shown
    assert shown.startswith("[16, ")
    assert 9 in request.sampling.stop_token_ids
    assert asked(engine, url, chat({"max_completion_tokens": 7.0})).max_new_tokens == 7
    generate = ("/generate", {"prompt": "x", "max_new_tokens": 8.0})
    assert asked(engine, url, generate).max_new_tokens == 8


def test_a_negative_seed_is_one_drawn_or_another(url: str, engine: ScriptedEngine) -> None:
    def seeds() -> list[int | None]:
        return [
            asked(engine, url, chat({"seed": seed})).sampling.seed
            for seed in (-1, -2, -(2**63), -1.0)
        ]

    drawn, *given, other = seeds()
    assert given == [2**63 - 2, 0]
    # Whoever asks for one to be drawn does not get the configured one.
    assert httpx.post(f"{url}/set_config", json={"seed": 5}).status_code == 200
    assert len({drawn, other, 5, *given, *seeds()}) == 3 + 2 + 2
    assert asked(engine, url, chat({})).sampling.seed == 5


@pytest.mark.parametrize("include_usage", [True, False])
def test_each_chunk_says_the_usage_so_far(client: OpenAI, include_usage: bool) -> None:
    options: Any = {"include_usage": include_usage, "continuous_usage_stats": True}
    chunks = list(
        client.completions.create(
            model=MODEL, prompt="Hi", max_tokens=50, stream=True, stream_options=options
        )
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert len(counts) == len(chunks) > 5
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    assert {chunk.usage.prompt_tokens for chunk in chunks if chunk.usage} == {1}
    assert [not chunk.choices for chunk in chunks].count(True) == include_usage


def test_a_request_reaches_the_chat_template(engine: ScriptedEngine, demo_text: ModelText) -> None:
    template = ChatTemplate("{{ 'deep' if enable_thinking else 'shallow' }}", {})
    text = replace(demo_text, chat_template=template)
    with served_engine(engine, text) as url:
        for switch in (True, False):
            asked(engine, url, chat({"chat_template_kwargs": {"enable_thinking": switch}}))
        asked(engine, url, chat({"chat_template_kwargs": {"not_read": [1, {"x": None}]}}))
    found = [demo_text.decode(request.prompt_ids) for request in engine.requests]
    assert found == ["deep", "shallow", "shallow"]


def test_arguments_of_a_template_may_be_nested_as_deep_as_a_body(url: str) -> None:
    for depth in (500, 900, 950, 970, 980, 990, 1000):
        nested = "[" * depth + "]" * depth
        content = json.dumps(chat({"chat_template_kwargs": {"x": 0}})[1]).replace(
            '"x": 0', f'"x": {nested}'
        )
        response = httpx.post(url + CHAT_PATH, content=content)
        assert response.status_code in (200, 400)


def test_the_official_client_may_replay_its_answer(client: OpenAI, engine: ScriptedEngine) -> None:
    messages: list[Any] = [QUESTION]
    answer = client.chat.completions.create(model=MODEL, messages=messages)
    said = answer.choices[0].message
    plain: list[Any] = [QUESTION, {"role": "assistant", "content": ANSWER}, QUESTION]
    client.chat.completions.create(model=MODEL, messages=plain)
    expected = engine.requests[-1].prompt_ids
    # As it comes, as a dump with its nulls, and as OpenAI's own answers are.
    replayed: list[Any] = [said, said.model_dump(), {**said.model_dump(), "annotations": []}]
    for one in replayed:
        client.chat.completions.create(model=MODEL, messages=[*messages, one, QUESTION])  # type: ignore[list-item]
        assert engine.requests[-1].prompt_ids == expected
    assert {"annotations", "audio", "function_call", "tool_calls"} <= said.model_dump().keys()


def test_the_official_client_may_replay_a_stream(url: str, engine: ScriptedEngine) -> None:
    async def conversation() -> None:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            messages: list[Any] = [QUESTION]
            for _ in range(2):
                async with client.chat.completions.stream(model=MODEL, messages=messages) as stream:
                    completion = await stream.get_final_completion()
                messages += [completion.choices[0].message.model_dump(), QUESTION]

    asyncio.run(conversation())
    assert len(engine.requests) == 2
    assert len(engine.requests[1].prompt_ids) > len(engine.requests[0].prompt_ids)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/tokenize", "/v1/embeddings"])
def test_who_asks_for_another_api_is_told_what_is_served(url: str, path: str) -> None:
    response = httpx.post(url + path, json={})
    assert response.status_code == 404
    error = response.json()["error"]
    assert "/v1/chat/completions, /v1/completions" in error["message"]
    assert path in error["message"]


def test_the_page_of_what_clients_send_is_the_generated_one() -> None:
    page = Path(__file__).parents[4] / "docs" / "compatibility.md"
    assert page.read_text("utf-8") == compatibility_page(), (
        "run: python -m tests.compatibility_page > docs/compatibility.md"
    )
