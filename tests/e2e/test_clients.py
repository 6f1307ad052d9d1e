"""Clients that people have, against the whole stack: what they send is served, what comes back they
read. The official one has tests of its own, in test_openai_conformance.

LangChain's and LiteLLM's run where langchain-openai and litellm are installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

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
    langchain_openai = pytest.importorskip("langchain_openai")
    model = langchain_openai.ChatOpenAI(
        model=BLOCK, base_url=f"{stack.url}/v1", api_key="unused", temperature=0, max_tokens=TOKENS
    )
    whole = model.invoke(QUESTION)
    assert whole.content
    assert whole.usage_metadata["output_tokens"] <= TOKENS
    assert "".join(piece.content for piece in model.stream(QUESTION)) == whole.content


def test_litellm(stack: WholeStack) -> None:
    litellm = pytest.importorskip("litellm")
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
