"""Calls of tools through the API, of models whose templates are in each family's shape."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from contract.carry import FIELD
from contract.carry import field as as_field
from runner.master.api.tools import MAX_TOOLS
from runner.master.text.model_text import ModelText
from tests.runner.master.api.carried_answers import ASKS as ASKS_IDS
from tests.runner.master.api.carried_answers import Told, read
from tests.runner.master.api.test_reasoning import Served, joined, model_text
from tests.runner.master.serving import MODEL, served_engine
from tests.runner.master.text.tools.templates import (
    HERMES,
    KNOWN,
    TAGGED,
    THINKING_HERMES,
    Shape,
)

Texts = Callable[[Shape], ModelText]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str, **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **function}}


TOOLS = [tool("weather", description="Of a city."), tool("time")]
ARGUMENTS = '{"city": "Łódź 🗼"}'
OBJECT = f'{{"name": "weather", "arguments": {ARGUMENTS}}}'
OTHER = '{"name": "time", "arguments": {"city": "Oslo"}}'
# What the model writes before, and how it writes two calls, or one where it writes no more.
ANSWERS = {
    "hermes": ("Let me see.\n", f"<tool_call>\n{OBJECT}\n</tool_call>\n<tool_call>{OTHER}"),
    "llama": ("", f"<|python_tag|>{OBJECT.replace('arguments', 'parameters')}; {OTHER}"),
    "mistral": ("Let me see.", f"[TOOL_CALLS][{OBJECT}, {OTHER}]"),
    "granite": ("", f"<|tool_call|>[{OBJECT}, {OTHER}]"),
    "harmony": (
        "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant",
        f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{ARGUMENTS}"
        "<|call|><|start|>assistant to=functions.time<|channel|>commentary json<|message|>"
        '{"city": "Oslo"}',
    ),
}


@contextmanager
def served(text: ModelText, answer: str) -> Iterator[Served]:
    model = Served(text, answer)
    with served_engine(model.engine, model.text) as model.url:
        yield model


@pytest.fixture(scope="module")
def texts(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Texts:
    """The demo model's with a template of this shape; to load one takes a second."""

    @functools.cache
    def made(shape: Shape) -> ModelText:
        folder = tmp_path_factory.mktemp("shape")
        return model_text(demo_folder, folder, shape.template, shape.special)

    return made


@pytest.fixture(params=KNOWN)
def model(request: pytest.FixtureRequest, texts: Texts) -> Iterator[Served]:
    answer = "".join(ANSWERS[request.param])
    with served(texts(KNOWN[request.param]), answer) as found:
        found.name = request.param
        yield found


@pytest.fixture
def hermes(texts: Texts) -> Iterator[Served]:
    with served(texts(HERMES), "".join(ANSWERS["hermes"])) as found:
        yield found


def streamed_calls(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As a client puts them together: a call begins with its id, type and name."""
    calls: list[dict[str, Any]] = []
    for chunk in chunks:
        for part in chunk["delta"].get("tool_calls", ()):
            if part["index"] == len(calls):
                assert part.keys() == {"index", "id", "type", "function"}
                calls.append({name: part[name] for name in ("id", "type", "function")})
            else:
                assert part["index"] == len(calls) - 1
                assert part.keys() == {"index", "function"}
                assert part["function"].keys() == {"arguments"}
                calls[-1]["function"]["arguments"] += part["function"]["arguments"]
    return calls


def test_calls_come_whole_and_streamed(model: Served) -> None:
    choice = model.chat(tools=TOOLS)
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["content"] == ("Let me see." if "see" in ANSWERS[model.name][0] else None)
    called = [call["function"] for call in message["tool_calls"]]
    assert called == [
        {"name": "weather", "arguments": ARGUMENTS},
        {"name": "time", "arguments": '{"city": "Oslo"}'},
    ]
    ids = [call["id"] for call in message["tool_calls"]]
    assert len(set(ids)) == 2
    if model.name == "mistral":
        assert all(len(one) == 9 and one.isalnum() for one in ids)
    chunks = model.stream(tools=TOOLS)
    assert [call["function"] for call in streamed_calls(chunks)] == called
    assert joined(chunks, "content") == (message["content"] or "")
    assert chunks[-1]["finish_reason"] == "tool_calls"
    assert sum("tool_calls" in chunk["delta"] for chunk in chunks) > 6


def test_without_tools_and_with_none_the_text_is_as_the_model_wrote_it(model: Served) -> None:
    for body in ({}, {"tools": [], "tool_choice": "auto"}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = model.chat(**body)
        assert "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "stop"
    prompts = [model.text.decode(request.prompt_ids) for request in model.engine.requests]
    assert prompts[0] == prompts[1]
    # As in vLLM: the beginning of the prompt stays what it was for the requests before.
    assert "Of a city." in prompts[2]
    assert "Of a city." not in prompts[0]


def test_one_call_where_several_are_not_wanted(model: Served) -> None:
    message = model.chat(tools=TOOLS, parallel_tool_calls=False)["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather"]
    chunks = model.stream(tools=TOOLS, parallel_tool_calls=False)
    assert [call["function"]["name"] for call in streamed_calls(chunks)] == ["weather"]


def test_an_answer_that_calls_nothing_is_as_without_tools(hermes: Served) -> None:
    said = "No <tool_calls> here.\n"
    hermes.ids = [*hermes.text.tokenizer.encode(said).ids, hermes.text.chat_eos_ids[0]]
    choice = hermes.chat(tools=TOOLS)
    assert choice["message"] == {"role": "assistant", "content": said, "refusal": None}
    assert choice["finish_reason"] == "stop"
    chunks = hermes.stream(tools=TOOLS)
    assert joined(chunks, "content") == said
    assert sum("content" in chunk["delta"] for chunk in chunks) > 3


def test_an_answer_cut_in_its_call_says_so(hermes: Served) -> None:
    chunks = hermes.stream(tools=TOOLS, max_tokens=24)
    [call] = streamed_calls(chunks)
    assert chunks[-1]["finish_reason"] == "length"
    assert ARGUMENTS.startswith(call["function"]["arguments"])
    choice = hermes.chat(tools=TOOLS, max_tokens=24)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"] == call["function"]


def test_every_choice_has_calls_and_ids_of_its_own(hermes: Served) -> None:
    chunks = hermes.stream(tools=TOOLS, n=2)
    calls = [
        streamed_calls([chunk for chunk in chunks if chunk["index"] == index]) for index in range(2)
    ]
    assert [[call["function"]["name"] for call in each] for each in calls] == 2 * [
        ["weather", "time"]
    ]
    assert len({call["id"] for each in calls for call in each}) == 4


def test_tokens_and_log_probabilities_are_those_of_the_whole_answer(model: Served) -> None:
    listed = model.ids[:-1]
    entries = model.chat(tools=TOOLS, logprobs=True)["logprobs"]["content"]
    assert len(entries) == len(listed)
    streamed = [
        entry
        for chunk in model.stream(tools=TOOLS, logprobs=True)
        if chunk["logprobs"]
        for entry in chunk["logprobs"]["content"]
    ]
    assert streamed == entries


def test_what_was_thought_before_a_call_is_reasoning(texts: Texts) -> None:
    answer = f"<think>\nIt <tool_call> asks.\n</think>\n\n{ANSWERS['hermes'][1]}"
    with served(texts(THINKING_HERMES), answer) as model:
        message = model.chat(tools=TOOLS)["message"]
        chunks = model.stream(tools=TOOLS)
    assert message["reasoning_content"] == "It <tool_call> asks."
    assert message["content"] is None
    assert len(message["tool_calls"]) == 2
    assert joined(chunks, "reasoning_content") == message["reasoning_content"]
    assert not joined(chunks, "content")
    assert len(streamed_calls(chunks)) == 2


def test_a_loop_of_the_official_client(model: Served) -> None:
    """Ask, call, answer with the result, with its own objects as they come back."""
    with OpenAI(base_url=f"{model.url}/v1", api_key="none", max_retries=0) as client:
        tools: Any = TOOLS[: 1 if model.name == "llama" else 2]
        one = model.name == "llama"  # its template takes no more
        asked: dict[str, Any] = {"model": MODEL, "tools": tools, "parallel_tool_calls": not one}
        messages: list[Any] = [{"role": "user", "content": "Rain?"}]
        said = client.chat.completions.create(messages=messages, **asked).choices[0].message
        with client.chat.completions.stream(messages=messages, **asked) as stream:
            assembled = stream.get_final_completion().choices[0].message
        assert said.tool_calls
        assert assembled.tool_calls
        for answer in (said, said.model_dump(), assembled.model_dump()):
            calls = answer["tool_calls"] if isinstance(answer, dict) else answer.tool_calls
            ids = [call["id"] if isinstance(call, dict) else call.id for call in calls or ()]
            results = [{"role": "tool", "tool_call_id": one, "content": "wet"} for one in ids]
            client.chat.completions.create(messages=[*messages, answer, *results], **asked)
            prompt = model.text.decode(model.engine.requests[-1].prompt_ids)
            assert ARGUMENTS in prompt
            assert prompt.count("wet") == len(ids)


@pytest.mark.parametrize("stream", [True, False])
def test_delivered_and_carried_are_the_uncut_answer(model: Served, stream: bool) -> None:
    """Cut after each token: between calls, in a name, in arguments, in a marker."""
    asked = {"model": MODEL, "messages": [USER], "tools": TOOLS, "stream": stream}
    with httpx.Client(base_url=model.url, headers=ASKS_IDS, timeout=60) as client:

        def ask(**carried: Any) -> Told:
            return read(client.post("/v1/chat/completions", json=asked | carried).content)

        whole = ask()
        expected = [event for part, _ in whole.parts for event in part] + whole.end
        calls = [call for event in expected for call in told_calls(event)]
        assert [it["function"]["name"] for it in calls if "id" in it] == ["weather", "time"]
        for kept in range(0, len(whole.parts) + 1, 1 if stream and model.name == "hermes" else 5):
            delivered = [event for part, _ in whole.parts[:kept] for event in part]
            told = ask(**{FIELD: as_field(whole.carry(None, kept))})
            assert told.done
            after = [event for part, _ in told.parts for event in part] + told.end
            assert delivered + after == expected


def told_calls(event: dict[str, Any]) -> list[dict[str, Any]]:
    [choice] = event["choices"]
    message = choice.get("delta") or choice.get("message") or {}
    calls: list[dict[str, Any]] = message.get("tool_calls") or []
    return calls


def error_of(url: str, **body: Any) -> dict[str, Any]:
    document = {"model": MODEL, "messages": [{"role": "user", "content": "Rain?"}], **body}
    answer = httpx.post(f"{url}/v1/chat/completions", json=document, timeout=60)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


@pytest.mark.parametrize("shape", [None, TAGGED])
def test_a_model_without_a_known_form_refuses_tools(
    shape: Shape | None, demo_text: ModelText, texts: Texts
) -> None:
    with served(texts(shape) if shape else demo_text, "Yes.") as model:
        for choice in (None, "auto", "required"):
            error = error_of(model.url, tools=TOOLS, tool_choice=choice)
            assert error["param"] == "tools"
            assert "no form of calls that is known" in error["message"]
        assert model.chat(tools=TOOLS, tool_choice="none")["message"]["content"] == "Yes."


USER = {"role": "user", "content": "Rain?"}


def test_a_template_of_its_own_for_tools(demo_folder: Path, tmp_path: Path) -> None:
    model_text(demo_folder, tmp_path, "")
    (tmp_path / "chat_template.jinja").unlink()
    config = tmp_path / "tokenizer_config.json"
    templates = [
        {"name": "default", "template": "plain {{ messages[0].content }}"},
        {"name": "tool_use", "template": HERMES.template},
    ]
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": templates}))
    text = ModelText.load(tmp_path)
    with served(text, "".join(ANSWERS["hermes"])) as model:
        assert len(model.chat(tools=TOOLS)["message"]["tool_calls"]) == 2
        assert "tool_calls" not in model.chat()["message"]
    asked, plain = (text.decode(request.prompt_ids) for request in model.engine.requests)
    assert "Of a city." in asked
    assert plain.startswith("plain ")


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ASKS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "x"}


def messages(*items: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [USER, *items]}


def called(**changes: Any) -> dict[str, Any]:
    return messages({**ASKS, "tool_calls": [{**CALL, **changes}]})


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": {}}, "tools", "must be a list"),
    ({"tools": [1]}, "tools[0]", "must be {"),
    ({"tools": [{"type": "custom"}]}, "tools[0].type", "calls nothing by itself"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "must be {"),
    ({"tools": [tool("f") | {"x": 1}]}, "tools[0].x", "not a field"),
    ({"tools": [tool("f"), tool("with space")]}, "tools[1].function.name", "1 to 64 letters"),
    ({"tools": [tool("")]}, "tools[0].function.name", "1 to 64 letters"),
    ({"tools": [tool("f\n")]}, "tools[0].function.name", "1 to 64 letters"),
    ({"tools": [tool("x" * 65)]}, "tools[0].function.name", "1 to 64 letters"),
    ({"tools": [tool("f"), tool("g"), tool("f")]}, "tools[2].function.name", "of tools[0]"),
    ({"tools": [tool("f", parameters=[])]}, "tools[0].function.parameters", "JSON Schema"),
    ({"tools": [tool("f", description=1)]}, "tools[0].function.description", "string"),
    ({"tools": [tool("f", strict=1)]}, "tools[0].function.strict", "true or false"),
    ({"tools": [tool("f", returns={})]}, "tools[0].function.returns", "not a field"),
    ({"tools": [tool(f"f{n}") for n in range(1_000)]}, "tools", f"at most {MAX_TOOLS}"),
    ({"tools": [tool(f"f{n}") for n in range(10_000)]}, "tools", "65536 keys"),
    ({"tools": [tool("f", description="x" * 2**20)]}, "tools", "model's context"),
    ({"tool_choice": "required"}, "tool_choice", "only with tools"),
    ({"tool_choice": "any", "tools": TOOLS}, "tool_choice", 'must be "none"'),
    ({"tool_choice": {"type": "function"}, "tools": TOOLS}, "tool_choice", 'must be "none"'),
    (
        {"tool_choice": {"type": "function", "function": {"name": "no"}}, "tools": TOOLS},
        "tool_choice.function.name",
        "one of tools: weather, time",
    ),
    (
        {"response_format": {"type": "json_object"}, "tools": TOOLS},
        "response_format",
        "beside tools",
    ),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls", "true or false"),
    ({"functions": [{"name": "f"}]}, "functions", "older form of tools"),
    (messages(RESULT), "messages[1].tool_call_id", "id of a call"),
    (messages(ASKS, RESULT | {"tool_call_id": "2"}), "messages[2].tool_call_id", "id of a call"),
    (messages(ASKS, USER, RESULT), "messages[3].tool_call_id", "id of a call"),
    (messages({"role": "tool", "content": "x"}), "messages[1].tool_call_id", "id of a call"),
    (messages(USER | {"tool_call_id": "1"}), "messages[1].tool_call_id", 'role "tool"'),
    (messages(USER | {"tool_calls": [CALL]}), "messages[1].tool_calls", 'role "assistant"'),
    (messages(ASKS | {"tool_calls": CALL}), "messages[1].tool_calls", "list"),
    (messages(ASKS | {"tool_calls": [1]}), "messages[1].tool_calls[0]", "must be {"),
    (called(id=5), "messages[1].tool_calls[0].id", "string"),
    (called(type="custom"), "messages[1].tool_calls[0].type", '"function"'),
    (called(function="f"), "messages[1].tool_calls[0].function", "must be {"),
    (
        called(function={"name": "f", "arguments": {}}),
        "messages[1].tool_calls[0].function.arguments",
        "must be a string",
    ),
    (messages(ASKS | {"tool_calls": [1] * 20_000}), "messages", "calls of tools"),
    (messages({"role": "assistant", "content": None}), "messages[1].content", "must be a string"),
]


@pytest.mark.parametrize(("body", "field", "rule"), REFUSED)
def test_what_is_refused_names_field_and_rule(
    hermes: Served, body: dict[str, Any], field: str, rule: str
) -> None:
    error = error_of(hermes.url, **body)
    assert error["param"] == field
    assert rule in error["message"]
    assert hermes.engine.requests == []


def test_a_schema_that_is_nested_too_deeply_is_refused(hermes: Served) -> None:
    for depth in (300, 900, 960, 990):
        nested = '{"a":' * depth + "1" + "}" * depth
        content = json.dumps({"model": MODEL, "messages": [USER], "tools": [tool("f")]})
        content = content.replace(json.dumps(SCHEMA), nested)
        answer = httpx.post(f"{hermes.url}/v1/chat/completions", content=content, timeout=60)
        assert answer.status_code in (200, 400), answer.text


def test_calls_for_a_template_that_reads_none_are_refused(url: str) -> None:
    error = error_of(url, **messages(ASKS, RESULT))
    assert error["param"] == "messages[1].tool_calls"
    assert "not read by the model's chat template" in error["message"]


def test_what_clients_send_beside_is_taken(hermes: Served) -> None:
    function = {**CALL["function"], "parsed_arguments": {}}  # type: ignore[dict-item]
    call = {**CALL, "index": 0, "function": function}
    plain = {"type": "function", "function": {"name": "f", "parameters": None, "strict": True}}
    hermes.chat(tools=[plain], **messages({**ASKS, "tool_calls": [call]}, RESULT))
    prompt = hermes.text.decode(hermes.engine.requests[0].prompt_ids)
    assert '"parameters": {"type": "object", "properties": {}}' in prompt
