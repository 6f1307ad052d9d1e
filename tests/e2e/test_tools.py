"""Tools through every tier, of a model that talks nonsense: what it has to call is still valid.

Its template is in Hermes's shape.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import jsonschema
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import Field

from tests.e2e.carried_stack import BLOCK, CarriedStack
from tests.e2e.random_model import save_random_model
from tests.e2e.seen import BEGUN
from tests.programs import needs
from tests.runner.master.text.tools.templates import HERMES
from tests.waiting import wait_for

pytestmark = [pytest.mark.slow, needs("redis-server")]

QUESTION = "Rain in Oslo?"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Łódź"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
LETTER = {"type": "object", "properties": {"text": {"type": "string", "minLength": 700}}}
WRITE: Any = {
    "type": "function",
    "function": {"name": "write", "parameters": LETTER | {"required": ["text"]}},
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CarriedStack]:
    model = save_random_model(tmp_path_factory.mktemp("model"), 2)
    (Path(model) / "chat_template.jinja").write_text(HERMES.template)
    with ExitStack() as ending:
        yield CarriedStack(tmp_path_factory.mktemp("stack"), model, ending)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_loop_of_the_official_client(stack: CarriedStack, choice: Any) -> None:
    asked: dict[str, Any] = {"model": BLOCK, "tools": [WEATHER], "tool_choice": choice}
    asked |= {"temperature": 1.2, "parallel_tool_calls": False, "max_tokens": 300}
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    with OpenAI(base_url=f"{stack.server.url}/v1", api_key="none", max_retries=0) as client:
        for turn in range(3):
            if turn % 2:
                with client.chat.completions.stream(messages=messages, seed=turn, **asked) as it:
                    answer = it.get_final_completion()
            else:
                answer = client.chat.completions.create(messages=messages, seed=turn, **asked)
            assert answer.choices[0].finish_reason == "tool_calls"
            [call] = answer.choices[0].message.tool_calls or ()
            assert call.type == "function"
            jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
            messages += [answer.choices[0].message.model_dump()]
            messages += [{"role": "tool", "tool_call_id": call.id, "content": "wet"}]
        asked["tool_choice"] = "none"
        answer = client.chat.completions.create(messages=messages, **asked | {"max_tokens": 9})
    assert answer.choices[0].message.content
    assert not answer.choices[0].message.tool_calls


# Bounded, so that a model of random weights comes to the end of a call.
@tool
def weather(city: Literal["Oslo", "Łódź"], days: Annotated[int, Field(ge=1, le=14)]) -> str:
    """Tell the weather of a city for so many days."""
    return f"{days} wet days in {city}"


def test_an_agent_loop_of_langchain(stack: CarriedStack) -> None:
    model = ChatOpenAI(model=BLOCK, base_url=f"{stack.server.url}/v1", api_key="none", seed=4)
    asked = model.bind_tools([weather], tool_choice="required", parallel_tool_calls=False)
    said: list[Any] = [HumanMessage(QUESTION)]
    for streamed in (False, True):
        if streamed:
            first, *others = asked.stream(said)
            answer = sum(others, first)
        else:
            answer = asked.invoke(said)
        assert isinstance(answer, AIMessage)
        assert not answer.invalid_tool_calls
        [call] = answer.tool_calls
        said += [answer, weather.invoke(call)]
        assert "wet days in" in said[-1].content
    plain = model.bind_tools([weather], tool_choice="none").bind(max_tokens=9)
    assert plain.invoke(said).content


def test_a_call_goes_on_over_the_masters_death(stack: CarriedStack) -> None:
    """In the middle of its arguments; nothing of it is lost or comes twice."""
    messages = [{"role": "user", "content": QUESTION}]
    body: dict[str, Any] = {
        "model": BLOCK,
        "messages": messages,
        "tools": [WRITE],
        "tool_choice": "required",
    }
    body |= {"stream": True, "seed": 3, "temperature": 1.0, "max_tokens": 400}
    url = f"{stack.server.url}/v1/chat/completions"
    undisturbed = list(events(url, body, []))
    seen: list[dict[str, Any]] = []
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(lambda: list(events(url, body, seen)))
        wait_for(lambda: asking.done() or len(seen) >= BEGUN)
        assert not asking.done()
        stack.lose_master()
        disturbed = asking.result()
    assert called(disturbed) == called(undisturbed)
    name, arguments, reasons = called(disturbed)
    assert name == "write"
    assert reasons in (["tool_calls"], ["length"])
    assert len(arguments) > 200
    assert len({event["id"] for event in disturbed}) == 1


def events(url: str, body: dict[str, Any], seen: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    with httpx.stream("POST", url, json=body, timeout=180) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                seen.append(event)
                yield event


def called(said: list[dict[str, Any]]) -> tuple[str, str, list[str]]:
    """The one call's name and arguments, and the finish reasons."""
    choices = [choice for event in said for choice in event["choices"]]
    parts = [part for choice in choices for part in choice["delta"].get("tool_calls", ())]
    assert [part["index"] for part in parts] == [0] * len(parts)
    assert ["id" in part for part in parts] == [True] + [False] * (len(parts) - 1)
    arguments = "".join(part["function"]["arguments"] for part in parts)
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    return parts[0]["function"]["name"], arguments, reasons


def test_the_block_protocol_has_no_tools(stack: CarriedStack) -> None:
    body = {"model": BLOCK, "session_id": "tools", "seq_no": 1, "data": {"message": QUESTION}}
    for where, document in (
        ("tools", body | {"tools": [WEATHER]}),
        ("data.tools", body | {"data": {"message": QUESTION, "tools": [WEATHER]}}),
    ):
        answer = httpx.post(f"{stack.server.url}/v1/infer", json=document, timeout=60)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == where
