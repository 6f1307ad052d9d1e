"""Clients that people have, against the whole stack: what they send is served, what comes back they
read. The official one has tests of its own, in test_openai_conformance.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from langchain_openai import ChatOpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from runner.models.folder import resolve_model
from tests.e2e.whole_stack import BLOCK, MODEL, WholeStack

pytestmark = pytest.mark.slow

QUESTION = "Name three colours of the rainbow."
TOKENS = 12


@pytest.fixture(scope="module")
def stack(whole_stack: WholeStack) -> WholeStack:
    return whole_stack


@pytest.fixture(scope="module")
def demo_folder() -> Path:
    return resolve_model(MODEL, weights=True).path


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


def test_loglikelihoods_of_lm_evaluation_harness(stack: WholeStack, demo_folder: Path) -> None:
    """As its local-completions asks: ids of context and continuation, and one token more, which it
    leaves out. What it reads are the sum over the continuation, and whether each of its ids is what
    the model would have said; both are transformers' own."""
    tokenizer = AutoTokenizer.from_pretrained(demo_folder)
    asked = [
        ("The capital of France is", " Paris"),
        ("The capital of France is", " a purple banana"),
        (QUESTION, " Red, orange and yellow."),
    ]
    contexts = [tokenizer(context).input_ids for context, _ in asked]
    prompts = [tokenizer(context + continuation).input_ids for context, continuation in asked]
    body = {"model": BLOCK, "prompt": prompts, "temperature": 0, "max_tokens": 1}
    body |= {"logprobs": 1, "seed": 1234, "echo": True}
    answer = httpx.post(f"{stack.url}/v1/completions", json=body, timeout=60).json()
    choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
    model = AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32)
    found = []
    for choice, context, prompt in zip(choices, contexts, prompts, strict=True):
        begin, logprobs = len(context), choice["logprobs"]
        scores = logprobs["token_logprobs"][begin:-1]
        best = [max(top.values()) for top in logprobs["top_logprobs"][begin:-1]]
        with torch.no_grad():
            rows = model(torch.tensor([prompt])).logits[0, begin - 1 : -1].log_softmax(-1)
        ids = torch.tensor(prompt[begin:])
        expected = rows.gather(1, ids[:, None]).sum().item()
        assert sum(scores) == pytest.approx(expected, abs=1e-3)
        assert (scores == best) == bool((rows.argmax(-1) == ids).all())
        found.append(scores == best)
    assert found[:2] == [True, False]


def test_texts_of_lm_evaluation_harness(stack: WholeStack, demo_folder: Path) -> None:
    """As it asks for a text up to a stop string, in a batch of prompts as ids."""
    tokenizer = AutoTokenizer.from_pretrained(demo_folder)
    prompts = [tokenizer(text).input_ids for text in ("The capital of France is", "1, 2, 3,")]
    body = {"prompt": prompts, "model": BLOCK, "max_tokens": TOKENS, "temperature": 0}
    body |= {"stop": ["\n\n", "7", "<|im_end|>"], "seed": 1234}
    answer = httpx.post(f"{stack.url}/v1/completions", json=body, timeout=60).json()
    texts = {choice["index"]: choice["text"] for choice in answer["choices"]}
    assert texts[1] == " 4, 5, 6, "
    assert texts[0].startswith(" Paris")
