"""Memory by a number: a request of a few bytes that makes the server allocate what it says."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from starlette.testclient import TestClient

from proxy_block.block_request import parse_block_request
from runner.master.text.model_text import ModelText
from tests.runner.master.scripted_engine import ScriptedEngine
from tests.runner.master.serving import MODEL, master_app
from web.errors import ApiError

HUGE = [100_000, 10**9, 10**18, 2**63, 10**40]
COMPLETION = {"model": MODEL, "prompt": "x"}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
NUMBERS = [
    ("/v1/completions", COMPLETION, "n"),
    ("/v1/completions", COMPLETION, "best_of"),
    ("/v1/completions", COMPLETION, "logprobs"),
    ("/v1/completions", COMPLETION, "max_tokens"),
    ("/v1/completions", COMPLETION, "min_tokens"),
    ("/v1/chat/completions", CHAT, "n"),
    ("/v1/chat/completions", CHAT | {"logprobs": True}, "top_logprobs"),
    ("/v1/chat/completions", CHAT, "max_completion_tokens"),
    ("/generate", {"prompt": "x"}, "max_new_tokens"),
]
# Items that cost their senders two bytes or so.
LISTS = [
    ("/v1/completions", COMPLETION, "prompt", ["x"] * 100_000),
    ("/v1/completions", COMPLETION, "prompt", [[1]] * 100_000),
    ("/v1/completions", COMPLETION, "stop", ["x"] * 100_000),
    ("/v1/completions", COMPLETION, "logit_bias", {str(number): 1 for number in range(100_000)}),
    ("/v1/chat/completions", CHAT, "messages", CHAT["messages"] * 50_000),  # type: ignore[operator]
    ("/v1/chat/completions", CHAT, "chat_template_kwargs", {"x": ["y"] * 100_000}),
]
# The refusal of a request, and the body that names it.
LEAST = 4 * 2**20


@pytest.fixture
def master(engine: ScriptedEngine, demo_text: ModelText) -> TestClient:
    return TestClient(master_app(engine, demo_text))  # type: ignore[arg-type]


@pytest.mark.parametrize(("path", "body", "field"), NUMBERS)
@pytest.mark.parametrize("number", HUGE)
def test_a_huge_number_is_refused_before_anything_is_made_of_it(
    master: TestClient,
    engine: ScriptedEngine,
    path: str,
    body: dict[str, Any],
    field: str,
    number: int,
) -> None:
    """Uncontrolled allocation: choices, beams, alternatives or places for tokens are made as many
    as asked for, before somebody looks whether they may be."""
    master.post(path, json=body)  # what is made once
    engine.requests.clear()
    tracemalloc.start()
    try:
        answer = master.post(path, json=body | {field: number})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]
    assert not engine.requests
    assert peak < LEAST


@pytest.mark.parametrize(("path", "body", "field", "items"), LISTS)
def test_a_long_list_is_refused_before_it_is_work(
    master: TestClient,
    engine: ScriptedEngine,
    path: str,
    body: dict[str, Any],
    field: str,
    items: Any,
) -> None:
    """Amplification: one body with a list becomes as many requests, or as much work, as it has
    items."""
    answer = master.post(path, json=body | {field: items})
    assert answer.status_code == 400
    assert field in json.dumps(answer.json()["error"])
    assert len(answer.content) < 2000
    assert not engine.requests


def test_more_values_than_any_request_needs_are_refused_before_they_are_read(
    master: TestClient, engine: ScriptedEngine
) -> None:
    answer = master.post("/v1/chat/completions", json=CHAT | {"messages": [{}] * 300_000})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "too_many_values"
    assert len(answer.content) < 2000
    assert not engine.requests


@pytest.mark.parametrize("data", [["x"] * 10_000, {"inputs": ["x"] * 10_000}, [[[[["x"]]]]]])
def test_a_block_takes_no_more_questions_than_it_says(data: Any) -> None:
    """The same through the block protocol, whose batches may be nested."""
    envelope = {"session_id": "s", "seq_no": 1, "data": data}
    with pytest.raises(ApiError) as refused:
        parse_block_request(envelope)
    assert refused.value.status == 400
