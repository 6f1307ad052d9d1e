"""Clients that people have, against the whole stack: what they send is served, what comes back they
read. The official one has tests of its own, in test_openai_conformance.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain_openai import ChatOpenAI

from tests.e2e.whole_stack import BLOCK, WholeStack

pytestmark = pytest.mark.slow

QUESTION = "Name three colours of the rainbow."
TOKENS = 12


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeStack]:
    with WholeStack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_requests_of_a_serving_benchmark(stack: WholeStack, path: str) -> None:
    """As `vllm bench serve` sends them; it counts by the usage and by the chunks."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    body: dict[str, Any] = {"model": BLOCK, "temperature": 0.0, "stream": True, "ignore_eos": True}
    body |= {"stream_options": options}
    if path.endswith("chat/completions"):
        content = [{"type": "text", "text": QUESTION}]
        body |= {"messages": [{"role": "user", "content": content}]}
        body |= {"max_completion_tokens": TOKENS}
    else:
        body |= {"prompt": QUESTION, "max_tokens": TOKENS, "repetition_penalty": 1.0}
        body |= {"logprobs": None}
    texts, usage = [], None
    with httpx.stream("POST", stack.url + path, json=body, timeout=60) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            data = line.removeprefix("data: ")
            if not line or line.startswith(":") or data == "[DONE]":
                continue
            chunk = json.loads(data)
            assert chunk["usage"]["completion_tokens"] <= TOKENS
            usage = chunk["usage"]
            for choice in chunk["choices"]:
                texts.append(choice.get("text") or choice.get("delta", {}).get("content") or "")
    assert usage is not None
    assert usage["completion_tokens"] == TOKENS
    assert "".join(texts)


def test_langchain(stack: WholeStack) -> None:
    model = ChatOpenAI(
        model=BLOCK, base_url=f"{stack.url}/v1", api_key="unused", temperature=0, max_tokens=TOKENS
    )
    whole = model.invoke(QUESTION)
    assert whole.content
    assert whole.usage_metadata["output_tokens"] <= TOKENS
    assert "".join(str(piece.content) for piece in model.stream(QUESTION)) == whole.content


def test_litellm(stack: WholeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    # Else it fetches a table of prices when it is imported.
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    asked = {
        "model": f"openai/{BLOCK}",
        "api_base": f"{stack.url}/v1",
        "api_key": "unused",
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": TOKENS,
    }
    whole = litellm.completion(**asked).choices[0].message.content
    assert whole
    stream = litellm.completion(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole


def test_the_requests_of_lm_evaluation_harness(stack: WholeStack) -> None:
    """As its local-completions sends a loglikelihood: ids of context and continuation, and one
    token more, which it leaves out. What it reads is each id's log probability, and whether the
    continuation is what the model would have said."""
    ids = [504, 3575, 282, 4649, 314, 7042, 30]  # of "The capital of France is Paris." or near it
    body = {"model": BLOCK, "prompt": [ids, ids[:4]], "temperature": 0, "max_tokens": 1}
    body |= {"logprobs": 1, "seed": 1234, "echo": True}
    answer = httpx.post(f"{stack.url}/v1/completions", json=body, timeout=60).json()
    for choice, prompt in zip(answer["choices"], (ids, ids[:4]), strict=True):
        logprobs = choice["logprobs"]
        assert len(logprobs["token_logprobs"]) == len(prompt) + 1
        scores = logprobs["token_logprobs"][1:-1]
        assert logprobs["token_logprobs"][0] is None
        for score, best in zip(scores, logprobs["top_logprobs"][1:-1], strict=True):
            assert score <= max(best.values()) <= 0
    whole, part = (choice["logprobs"]["token_logprobs"] for choice in answer["choices"])
    assert whole[1:4] == pytest.approx(part[1:4], abs=1e-4)
