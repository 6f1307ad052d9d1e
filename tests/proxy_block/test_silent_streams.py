"""A stream that is silent: headers at admission, comments, and what still goes wrong after them."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from contract.carry import MOST_FRUITLESS
from contract.specs import ProxySpec
from tests.waiting import wait_for
from tests.web.small_upstream import SILENT_S, SmallUpstream
from tests.web.tier_process import TierProcess
from web.events import COMMENT

OWN = COMMENT.decode().strip()
DEADLINE_S = 12.0


@pytest.fixture
def proxy(spec: ProxySpec, tmp_path: Path) -> Iterator[TierProcess]:
    spec = dataclasses.replace(spec, request_deadline_s=DEADLINE_S)
    with TierProcess("proxy_block", spec, tmp_path, comment_s=0.3) as process:
        yield process


def lines(proxy: TierProcess, text: str) -> list[tuple[float, str]]:
    """The stream's lines with the seconds since it was asked for; first its status."""
    messages = [{"role": "user", "content": text}]
    body = {"model": "block-1", "messages": messages, "stream": True}
    began = time.monotonic()
    with httpx.stream("POST", f"{proxy.url}/v1/chat/completions", json=body) as answer:
        found = [(time.monotonic() - began, str(answer.status_code))]
        found += [(time.monotonic() - began, line) for line in answer.iter_lines() if line]
    return found


@pytest.mark.parametrize(("text", "first"), [("be late", 0), ("pause", 3)])
def test_a_silent_upstream_is_bridged_with_comments(
    proxy: TierProcess, text: str, first: int
) -> None:
    (headers_at, status), *found = lines(proxy, text)
    assert (status, headers_at < SILENT_S / 2) == ("200", True)
    said = [line for _, line in found]
    comments = said.count(OWN)
    assert said[first : first + comments] == [OWN] * comments
    assert 3 <= comments <= 5
    assert len(said) == comments + 7
    assert said[-1] == "data: [DONE]"


def test_an_upstreams_comments_pass_and_none_are_added(proxy: TierProcess) -> None:
    said = [line for _, line in lines(proxy, "comment")]
    assert said[1:11] == [f": comment {number}" for number in range(10)]
    assert OWN not in said
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
    said = [line for _, line in lines(proxy, "die late")]
    assert len(upstream.requests) == 2
    assert [line for line in said if line != OWN][1:].count("data: [DONE]") == 1
    assert sum("assistant" in line for line in said) == 1


def test_a_503_after_the_headers_is_asked_again_and_then_told(
    proxy: TierProcess, upstream: SmallUpstream
) -> None:
    last = lines(proxy, "fail late")[-1][1]
    assert len(upstream.requests) == 1 + MOST_FRUITLESS
    error = {"message": "gone", "type": "service_unavailable_error", "code": "not_serving"}
    assert json.loads(last.removeprefix("data: ")) == {"error": error}


def test_the_deadline_after_the_headers_is_an_event(
    proxy: TierProcess, upstream: SmallUpstream
) -> None:
    ended_at, last = lines(proxy, "stream then hang")[-1]
    assert DEADLINE_S - 0.2 < ended_at < DEADLINE_S + 2
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    wait_for(lambda: upstream.left_at, 2)


def test_a_refusal_keeps_its_status(proxy: TierProcess) -> None:
    assert lines(proxy, "refuse")[0][1] == "400"


def test_a_client_that_leaves_between_comments_is_gone_upstream(
    proxy: TierProcess, upstream: SmallUpstream
) -> None:
    messages = [{"role": "user", "content": "stream then hang"}]
    body = {"model": "block-1", "messages": messages, "stream": True}
    with httpx.stream("POST", f"{proxy.url}/v1/chat/completions", json=body) as answer:
        next(line for line in answer.iter_lines() if line == OWN)
    left = time.monotonic()
    wait_for(lambda: upstream.left_at, 2)
    assert upstream.left_at[0] - left < 1
