"""A stream that is silent: headers at admission, comments, and what still goes wrong after them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from contract.carry import MOST_FRUITLESS
from tests.waiting import wait_for
from tests.web.small_upstream import SmallUpstream
from tests.web.tier_process import TierProcess
from web.events import COMMENT

# Many processes, killed and silent for seconds; tests/web shows each rule in one.
pytestmark = pytest.mark.slow

OWN = COMMENT.decode().strip()


@pytest.fixture(scope="module")
def proxy_options() -> dict[str, Any]:
    return {"comment_s": 0.3}


def lines(proxy: TierProcess, text: str, headers: dict[str, str] | None = None) -> Iterator[str]:
    """The stream's lines; first its status."""
    messages = [{"role": "user", "content": text}]
    body = {"model": "block-1", "messages": messages, "stream": True}
    url = f"{proxy.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers) as answer:
        yield str(answer.status_code)
        yield from (line for line in answer.iter_lines() if line)


@pytest.mark.parametrize(("text", "first"), [("be late", 0), ("pause", 3)])
def test_a_silent_upstream_is_bridged_with_comments(
    proxy: TierProcess, upstream: SmallUpstream, text: str, first: int
) -> None:
    upstream.held = True
    found = lines(proxy, text)
    assert next(found) == "200"
    said = [next(found) for _ in range(first + 3)]
    assert said[first:] == [OWN] * 3
    upstream.held = False
    said += [line for line in found if line != OWN]
    assert len(said) == 3 + 7
    assert said[-1] == "data: [DONE]"


def test_an_upstreams_comments_pass(proxy: TierProcess) -> None:
    said = [line for line in lines(proxy, "comment") if line != OWN]
    assert said[1:11] == [f": comment {number}" for number in range(10)]
    assert len(said) == 1 + 10 + 7


def test_the_openai_client_reads_through_comments(proxy: TierProcess) -> None:
    with OpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as client:
        for text in ("be late", "pause", "comment"):
            stream = client.chat.completions.create(
                model="block-1", messages=[{"role": "user", "content": text}], stream=True
            )
            read = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            assert read == "".join(f"piece {number} " for number in range(5))


def test_a_death_after_the_headers_is_asked_again(
    proxy: TierProcess, upstream: SmallUpstream
) -> None:
    said = list(lines(proxy, "die late"))
    assert len(upstream.requests) == 2
    assert [line for line in said if line != OWN][1:].count("data: [DONE]") == 1
    assert sum("assistant" in line for line in said) == 1


def test_a_503_after_the_headers_is_asked_again_and_then_told(
    proxy: TierProcess, upstream: SmallUpstream
) -> None:
    upstream.held = False
    *_, last = lines(proxy, "fail late")
    assert len(upstream.requests) == 1 + MOST_FRUITLESS
    error = {"message": "gone", "type": "service_unavailable_error", "code": "not_serving"}
    assert json.loads(last.removeprefix("data: ")) == {"error": error}


def test_the_deadline_after_the_headers_is_an_event(
    proxy: TierProcess, upstream: SmallUpstream
) -> None:
    *_, last = lines(proxy, "stream then hang", {"X-Request-Timeout": "2"})
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    wait_for(lambda: upstream.left_at)


def test_a_refusal_keeps_its_status(proxy: TierProcess) -> None:
    assert next(lines(proxy, "refuse")) == "400"


def test_a_client_that_leaves_between_comments_is_gone_upstream(
    proxy: TierProcess, upstream: SmallUpstream
) -> None:
    messages = [{"role": "user", "content": "stream then hang"}]
    body = {"model": "block-1", "messages": messages, "stream": True}
    with httpx.stream("POST", f"{proxy.url}/v1/chat/completions", json=body) as answer:
        next(line for line in answer.iter_lines() if line == OWN)
    wait_for(lambda: upstream.left_at)
