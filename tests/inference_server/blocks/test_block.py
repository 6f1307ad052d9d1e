"""Several replicas of one block: load, death, draining."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from contract.specs import BlockSpec
from tests.inference_server.conftest import Tiers
from tests.waiting import wait_for
from tests.web.tier_process import TierProcess

BLOCK = "block-1"


@pytest.fixture
def replicas(tiers: Tiers) -> list[TierProcess]:
    return [tiers.proxy(BLOCK) for _ in range(2)]


@pytest.fixture
def server(tiers: Tiers, replicas: list[TierProcess]) -> TierProcess:
    urls = tuple(one.url for one in replicas)
    return tiers.server(BlockSpec(BLOCK, "", replica_urls=urls))


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": BLOCK, "messages": [{"role": "user", "content": text}], **more}


def chat(server: TierProcess, text: str = "x", **more: Any) -> httpx.Response:
    url = f"{server.url}/v1/chat/completions"
    return httpx.post(url, json=body(text, **more))


def in_flight(server: TierProcess) -> dict[str, int]:
    [block] = httpx.get(f"{server.url}/v1/blocks").json()["data"]
    return {one["url"]: one["in_flight"] for one in block["replicas"]}


def hanging(server: TierProcess, stack: ExitStack, text: str) -> Iterator[str]:
    """The lines of a stream that has begun."""
    url = f"{server.url}/v1/chat/completions"
    asked = httpx.stream("POST", url, json=body(text, stream=True))
    lines = stack.enter_context(asked).iter_lines()
    next(lines)
    return lines


def test_requests_go_to_the_least_loaded(server: TierProcess, replicas: list[TierProcess]) -> None:
    with ExitStack() as stack:
        streams = [hanging(server, stack, "stream then hang") for _ in range(4)]
        assert in_flight(server) == {one.url: 2 for one in replicas}
        assert len(streams) == 4
    wait_for(lambda: in_flight(server) == {one.url: 0 for one in replicas})


def test_a_replica_that_dies_before_the_first_token_costs_nobody_anything(
    server: TierProcess, replicas: list[TierProcess], tiers: Tiers
) -> None:
    answers: list[httpx.Response] = []
    before = tiers.upstream.in_flight
    tiers.upstream.requests.clear()
    threads = [
        threading.Thread(target=lambda: answers.append(chat(server, "slow"))) for _ in range(4)
    ]
    with tiers.held():
        for thread in threads:
            thread.start()
        wait_for(lambda: tiers.upstream.in_flight == before + 4)
        replicas[0].process.kill()
        wait_for(lambda: len(tiers.upstream.requests) == 6)  # two are asked of the other one
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len(tiers.upstream.requests) == 6
    assert [chat(server).status_code for _ in range(6)] == [200] * 6


def test_one_that_dies_mid_stream_is_named_with_the_request(
    server: TierProcess, replicas: list[TierProcess]
) -> None:
    with ExitStack() as stack:
        lines = hanging(server, stack, "stream then hang")
        [url] = [url for url, count in in_flight(server).items() if count]
        next(one for one in replicas if one.url == url).process.kill()
        last = [line for line in lines if line][-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert f"block {BLOCK} at {url} died while it answered" in error["message"]
    assert error["code"] == "upstream_died_mid_stream"
    assert error["request_id"]
    assert chat(server).status_code == 200


def test_one_that_drains_is_passed_over(server: TierProcess, replicas: list[TierProcess]) -> None:
    with ExitStack() as stack:
        streams = [hanging(server, stack, "stream then hang") for _ in range(2)]
        replicas[0].process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{replicas[0].url}/readyz?self").status_code == 503)
        assert [chat(server).status_code for _ in range(6)] == [200] * 6
        assert sum(in_flight(server).values()) == 2
        assert len(streams) == 2


def test_when_none_is_left_one_that_returns_is_waited_for(
    tiers: Tiers, replicas: list[TierProcess]
) -> None:
    urls = tuple(one.url for one in replicas)
    block = BlockSpec(BLOCK, "", replica_urls=urls)
    server, patient = tiers.server(block, patience_s=1), tiers.server(block, patience_s=60)
    for one in replicas:
        one.process.kill()
        one.process.wait()
    answer = chat(server)
    assert answer.status_code == 503
    assert f"block {BLOCK} at " in answer.json()["error"]["message"]
    assert answer.headers["retry-after"] == "1"
    again = TierProcess("proxy_block", tiers.proxy_spec(BLOCK), tiers.folder, replicas[0].port)
    with ThreadPoolExecutor(2) as threads:
        question = {"session_id": "s", "seq_no": 1, "data": {"message": "x"}, "model": BLOCK}
        asked = threads.submit(httpx.post, f"{patient.url}/v1/infer", json=question)
        waiting = threads.submit(chat, patient)
        with again:
            assert [one.result().status_code for one in (waiting, asked)] == [200, 200]


def test_a_cache_key_keeps_to_one_replica(server: TierProcess, replicas: list[TierProcess]) -> None:
    def served() -> list[float]:
        texts = [httpx.get(f"{one.url}/metrics").text for one in replicas]
        line = 'http_requests_total{route="/v1/chat/completions",status="200"} '
        return [float(text.partition(line)[2].partition("\n")[0] or 0) for text in texts]

    for _ in range(8):
        chat(server, prompt_cache_key="conversation 7")
    assert sorted(served()) == [0, 8]
