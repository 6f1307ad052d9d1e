"""The official client against the whole stack: every documented parameter does what OpenAI's
documentation says, or is refused by name."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from tests.e2e.whole_stack import BLOCK, WholeStack
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

QUESTION: Any = [{"role": "user", "content": "Name three colours of the rainbow."}]
PROMPT = "The colours of the rainbow are"
SHORT = 12
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def stack(whole_stack: WholeStack) -> WholeStack:
    return whole_stack


@pytest.fixture(scope="module")
def client(stack: WholeStack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def chat(client: OpenAI) -> Ask:
    """A greedy chat unless told otherwise."""

    def ask(**parameters: Any) -> Any:
        values = {"model": BLOCK, "messages": QUESTION, "temperature": 0, "max_tokens": SHORT}
        return client.chat.completions.create(**(values | parameters))

    return ask


@pytest.fixture(scope="module")
def complete(client: OpenAI) -> Ask:
    def ask(**parameters: Any) -> Any:
        values = {"model": BLOCK, "prompt": PROMPT, "temperature": 0, "max_tokens": SHORT}
        return client.completions.create(**(values | parameters))

    return ask


def text(answer: Any) -> str:
    choice = answer.choices[0]
    found: str = choice.message.content if hasattr(choice, "message") else choice.text
    return found


def joined(stream: Any) -> str:
    pieces = []
    for chunk in stream:
        for choice in chunk.choices:
            pieces.append(choice.delta.content if hasattr(choice, "delta") else choice.text)
    return "".join(piece or "" for piece in pieces)


@pytest.fixture(scope="module")
def greedy(chat: Ask) -> str:
    return text(chat())


@pytest.fixture(scope="module", params=["chat", "complete"])
def ask(request: pytest.FixtureRequest) -> Ask:
    found: Ask = request.getfixturevalue(request.param)
    return found


# What is honoured; a parameter with a test of its own is named there.
HONOURED_BY_BOTH = {
    "model", "temperature", "top_p", "seed", "stop", "max_tokens", "n", "logit_bias", "logprobs",
    "presence_penalty", "frequency_penalty", "stream", "stream_options", "user",
}  # fmt: skip
HONOURED_BY_CHAT = HONOURED_BY_BOTH | {
    "messages", "max_completion_tokens", "top_logprobs", "safety_identifier", "prompt_cache_key",
    "response_format",
    # test_tools
    "tools", "tool_choice", "parallel_tool_calls",
}  # fmt: skip
HONOURED_BY_COMPLETIONS = HONOURED_BY_BOTH | {"prompt", "echo"}
# Parameter -> what is refused, and values that ask for nothing and pass.
REFUSED_BY_CHAT: dict[str, tuple[Any, list[Any]]] = {
    "audio": ({"voice": "alloy", "format": "wav"}, []),
    "function_call": ({"name": "f"}, ["none", "auto"]),
    "functions": ([{"name": "f"}], []),
    "metadata": ({"a": "b"}, [{}]),
    "modalities": (["text", "audio"], [["text"]]),
    "moderation": ({"model": "omni-moderation-latest"}, []),
    "prediction": ({"type": "content", "content": "x"}, []),
    "prompt_cache_options": ({"mode": "explicit"}, []),
    "prompt_cache_retention": ("24h", []),
    "reasoning_effort": ("low", []),
    "service_tier": ("priority", ["auto", "default"]),
    "store": (True, [False]),
    "verbosity": ("low", []),
    "web_search_options": ({}, []),
}
REFUSED_BY_COMPLETIONS: dict[str, tuple[Any, list[Any]]] = {
    "best_of": (3, [1]),
    "suffix": ("the end", []),
}
OF_THE_CLIENT = {"extra_headers", "extra_query", "extra_body", "timeout"}


def test_every_parameter_of_the_client_is_spoken_for(client: OpenAI) -> None:
    for method, honoured, refused in [
        (client.chat.completions.create, HONOURED_BY_CHAT, REFUSED_BY_CHAT),
        (client.completions.create, HONOURED_BY_COMPLETIONS, REFUSED_BY_COMPLETIONS),
    ]:
        documented = set(inspect.signature(method).parameters) - OF_THE_CLIENT
        assert documented == honoured | refused.keys()


@pytest.mark.parametrize("name", REFUSED_BY_CHAT)
def test_chat_refuses_by_name(chat: Ask, name: str) -> None:
    check_refused(chat, name, *REFUSED_BY_CHAT[name])


@pytest.mark.parametrize("name", REFUSED_BY_COMPLETIONS)
def test_completions_refuse_by_name(complete: Ask, name: str) -> None:
    check_refused(complete, name, *REFUSED_BY_COMPLETIONS[name])


def check_refused(ask: Ask, name: str, value: Any, harmless: list[Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(**{name: value})
    assert refused.value.param == name
    assert f"{name} = " in refused.value.message
    assert "not supported" in refused.value.message
    assert refused.value.request_id
    for one in harmless:
        assert ask(**{name: one}, max_tokens=1).choices


def test_tools_need_a_model_that_calls_them(chat: Ask) -> None:
    function: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(openai.BadRequestError, match="no form of calls") as refused:
        chat(tools=[function])
    assert refused.value.param == "tools"
    with pytest.raises(openai.BadRequestError, match="only with tools"):
        chat(tool_choice="required")
    harmless: list[dict[str, Any]] = [{"tools": []}, {"tools": [function], "tool_choice": "none"}]
    harmless += [{"tool_choice": choice} for choice in ("none", "auto")]
    for one in (*harmless, {"parallel_tool_calls": True}, {"parallel_tool_calls": False}):
        assert chat(**one, max_tokens=1).choices


def test_what_openai_does_not_document_is_refused_too(ask: Ask) -> None:
    with pytest.raises(openai.BadRequestError, match=r"surprise.*not a field"):
        ask(extra_body={"surprise": 1})


def test_answers_have_openais_shape(chat: Ask, complete: Ask) -> None:
    answer = chat()
    assert (answer.object, answer.id[:9]) == ("chat.completion", "chatcmpl-")
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    answer = complete()
    assert (answer.object, answer.id[:5]) == ("text_completion", "cmpl-")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == SHORT


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens(client: OpenAI, name: str) -> None:
    limit: Any = {name: 5}
    answer = client.chat.completions.create(model=BLOCK, messages=QUESTION, **limit)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.choices[0].finish_reason == "length"


def test_temperature_and_seed(ask: Ask) -> None:
    one, again, other = (text(ask(temperature=1.5, seed=seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert len({text(ask(temperature=1.5)) for _ in range(3)}) > 1


def test_top_p(ask: Ask) -> None:
    assert text(ask(temperature=1.5, top_p=1e-6)) == text(ask())


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_penalties(complete: Ask, name: str) -> None:
    prompt = "one two one two one two one two one two"
    plain = text(complete(prompt=prompt))
    punished = text(complete(prompt=prompt, **{name: 2.0}))
    assert punished != plain
    assert len(set(punished.split())) > len(set(plain.split()))


def test_stop(chat: Ask, greedy: str) -> None:
    word = greedy.split()[3]
    for stop in (word, ["never said", word]):
        answer = chat(stop=stop)
        assert text(answer) == greedy.partition(word)[0]
        assert answer.choices[0].finish_reason == "stop"
        assert joined(chat(stop=stop, stream=True)) == text(answer)


def test_n(ask: Ask) -> None:
    answer = ask(n=3, temperature=1.5, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    kind = "message" if hasattr(answer.choices[0], "message") else "text"
    assert len({str(getattr(choice, kind)) for choice in answer.choices}) == 3
    assert answer.usage.completion_tokens > SHORT


def test_logit_bias(complete: Ask) -> None:
    first = complete(max_tokens=1, logprobs=1).choices[0].logprobs.tokens[0]
    assert text(complete(max_tokens=1, logit_bias={5: 100})) != first
    forced = [text(complete(max_tokens=count, logit_bias={5: 100})) for count in (1, 3)]
    assert forced[0] * 3 == forced[1]


def test_logprobs_of_a_chat(chat: Ask) -> None:
    answer = chat(logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    assert "".join(item.token for item in content) == text(answer)
    for item in content:
        assert len(item.top_logprobs) == 3
        assert item.logprob == max(one.logprob for one in item.top_logprobs) <= 0
    assert chat().choices[0].logprobs is None


def test_logprobs_of_a_completion(complete: Ask) -> None:
    logprobs = complete(logprobs=2).choices[0].logprobs
    assert "".join(logprobs.tokens) == text(complete())
    assert len(logprobs.token_logprobs) == len(logprobs.text_offset) == SHORT
    assert all(2 <= len(one) <= 3 for one in logprobs.top_logprobs)


def test_echo_and_several_prompts(complete: Ask) -> None:
    assert text(complete(echo=True)) == PROMPT + text(complete())
    answer = complete(prompt=[PROMPT, "Once upon a time"], n=2, temperature=1, seed=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_streams_join_to_the_whole_and_count_the_same(ask: Ask) -> None:
    whole = ask()
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert joined(chunks) == text(whole)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    plain = list(ask(stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in plain)
    assert sum(bool(chunk.choices[0].finish_reason) for chunk in plain) == 1


def test_streamed_choices(ask: Ask) -> None:
    chunks = list(ask(stream=True, n=2, temperature=1.5, seed=1))
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}


@pytest.mark.parametrize("name", ["user", "safety_identifier"])
def test_whom_a_request_is_for_is_in_the_request_log(
    stack: WholeStack, chat: Ask, name: str
) -> None:
    answer = chat(**{name: f"{name} 7"}, extra_headers={"X-Request-Id": f"for-{name}"})
    url = f"{stack.url}/logs/request/for-{name}"
    [row] = httpx.get(url).json()["data"]
    assert row["user"] == f"{name} 7"
    assert row["prompt_tokens"] == answer.usage.prompt_tokens
    assert row["completion_tokens"] == answer.usage.completion_tokens


def test_a_cache_key_changes_no_answer(chat: Ask, greedy: str) -> None:
    assert text(chat(prompt_cache_key="mine")) == greedy


def test_messages_of_every_supported_kind(chat: Ask) -> None:
    parts = [{"type": "text", "text": "Name three "}, {"type": "text", "text": "animals."}]
    messages = [
        {"role": "developer", "content": "Answer in one word."},
        {"role": "user", "content": "Hello", "name": "ann"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": parts},
    ]
    assert text(chat(messages=messages))
    picture = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    with pytest.raises(openai.BadRequestError) as refused:
        chat(messages=[{"role": "user", "content": picture}])
    assert refused.value.param == "messages[0].content[0]"


def test_models(client: OpenAI, chat: Ask) -> None:
    assert [model.id for model in client.models.list()] == [BLOCK]
    assert client.models.retrieve(BLOCK).id == BLOCK
    with pytest.raises(openai.NotFoundError) as unknown:
        chat(model="gpt-unknown")
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-unknown")


def test_too_long_a_prompt_has_openais_code(ask: Ask, complete: Ask) -> None:
    long = "word " * 3000
    what: Any = (
        {"prompt": long} if ask is complete else {"messages": [{"role": "user", "content": long}]}
    )
    with pytest.raises(openai.BadRequestError) as refused:
        ask(**what)
    assert refused.value.code == "context_length_exceeded"


def running(stack: WholeStack) -> float:
    metrics = httpx.get(f"{stack.master_url}/metrics").text
    found = re.search(r"^vllm:num_requests_running(?:{.*})? (\S+)$", metrics, re.MULTILINE)
    assert found
    return float(found[1])


def test_a_stream_that_is_closed_stops_computing(stack: WholeStack, chat: Ask) -> None:
    stream = chat(stream=True, max_tokens=900, stop=None, extra_body={"ignore_eos": True})
    next(iter(stream))
    assert running(stack) == 1
    stream.close()
    wait_for(lambda: running(stack) == 0)


def test_the_asynchronous_client(stack: WholeStack, greedy: str) -> None:
    async def run() -> None:
        async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="unused") as client:
            create: Any = client.chat.completions.create
            values = {"model": BLOCK, "messages": QUESTION, "temperature": 0, "max_tokens": SHORT}
            wholes = await asyncio.gather(*(create(**values) for _ in range(4)))
            assert {text(whole) for whole in wholes} == {greedy}
            pieces = [
                chunk.choices[0].delta.content or ""
                async for chunk in await create(**values, stream=True)
            ]
            assert "".join(pieces) == greedy
            endless = values | {"max_tokens": 900, "extra_body": {"ignore_eos": True}}
            task = asyncio.create_task(create(**endless))
            await asyncio.to_thread(wait_for, lambda: running(stack) == 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    wait_for(lambda: running(stack) == 0)


class Colour(BaseModel):
    name: str = Field(max_length=20)
    bright: bool


def test_response_format(client: OpenAI, chat: Ask, complete: Ask) -> None:
    values: Any = {"model": BLOCK, "messages": QUESTION, "temperature": 0, "max_tokens": 60}
    parsed = client.chat.completions.parse(**values, response_format=Colour)
    assert isinstance(parsed.choices[0].message.parsed, Colour)
    assert parsed.choices[0].finish_reason == "stop"
    asked = {
        "type": "json_schema",
        "json_schema": {"name": "c", "schema": Colour.model_json_schema()},
    }
    whole = chat(max_tokens=60, response_format=asked)
    assert Colour.model_validate_json(text(whole)) == parsed.choices[0].message.parsed
    assert joined(chat(max_tokens=60, response_format=asked, stream=True)) == text(whole)
    cut = chat(response_format={"type": "json_object"}, max_tokens=3)
    assert text(cut).startswith("{")
    assert cut.choices[0].finish_reason == "length"
    assert text(chat(response_format={"type": "text"})) == text(chat())
    choice = {"structured_outputs": {"choice": ["violet", "orange"]}}
    assert text(chat(extra_body=choice)) in ("violet", "orange")
    assert text(complete(extra_body=choice)) in ("violet", "orange")


def test_a_form_that_cannot_be_served_is_refused_by_name(chat: Ask) -> None:
    schema = {"name": "it", "schema": {"type": "string", "not": {"const": ""}}}
    with pytest.raises(openai.BadRequestError) as refused:
        chat(response_format={"type": "json_schema", "json_schema": schema})
    assert refused.value.param == "response_format.json_schema.schema"
    assert '["not"]' in refused.value.message
