"""AIOS's POST /v1/chat/ at a block."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from proxy_block.aios_chat import openai_chat
from tests.web.small_upstream import DEPLOYMENT, SmallUpstream
from tests.web.tier_process import TierProcess
from web.errors import ApiError

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"enable_streaming": True}, {"stream": True}),
        ({"enable_streaming": False, "stream": None}, {"stream": False}),
        ({"generation_config": {"max_new_tokens": 3}}, {"max_tokens": 3}),
        ({"generation_config": {"do_sample": False, "top_k": 3}}, {"temperature": 0}),
        (
            {"generation_config": {"max_new_tokens": 3}, "max_completion_tokens": 4},
            {"max_completion_tokens": 4},
        ),
        ({"generation_config": {"temperature": 1}, "temperature": 0.5}, {"temperature": 0.5}),
    ],
)
def test_as_a_body_of_openai_s(given: dict[str, Any], asked: dict[str, Any]) -> None:
    assert openai_chat({"messages": MESSAGES, **given}) == {"messages": MESSAGES, **asked}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"gen_params": {}}, "gen_params"),
        ({"generation_config": {"max_tokens": 3}}, "generation_config.max_tokens"),
        ({"generation_config": 3}, "generation_config"),
        ({"enable_streaming": "yes"}, "enable_streaming"),
        ({"enable_streaming": True, "stream": False}, "stream"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as raised:
        openai_chat({"messages": MESSAGES, **given})
    assert raised.value.body["error"]["param"] == param


def test_the_model_may_be_left_out(proxy: TierProcess, upstream: SmallUpstream) -> None:
    url = f"{proxy.url}/v1/chat/"
    answer = httpx.post(url, json={"messages": MESSAGES})
    assert answer.json()["choices"][0]["message"]["content"] == "1 messages: hello"
    streamed = httpx.post(url, json={"messages": MESSAGES, "enable_streaming": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.text.endswith("data: [DONE]\n\n")
    httpx.post(url, json={"messages": MESSAGES, "model": "other"})
    assert [body["model"] for body in upstream.requests] == [DEPLOYMENT, DEPLOYMENT, "other"]
