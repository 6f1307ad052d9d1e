"""Pass-through, failures of the master, readiness, draining: real processes on loopback."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from contract.carry import MOST_FRUITLESS
from contract.specs import ProxySpec
from tests.waiting import wait_for
from tests.web.leaving_client import ask_and_leave
from tests.web.small_upstream import DEPLOYMENT, MODEL, SmallUpstream
from tests.web.tier_process import TierProcess
from web.domain import HEADER, domain_of


def chat(text: str, *, stream: bool = False) -> dict[str, object]:
    messages = [{"role": "user", "content": text}]
    return {"model": "block-1", "messages": messages, "stream": stream}


def events(answer: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in answer.iter_lines() if line]


def test_a_stream_comes_as_it_is_made(proxy: TierProcess, upstream: SmallUpstream) -> None:
    url = f"{proxy.url}/v1/chat/completions"
    upstream.held = True
    with httpx.stream("POST", url, json=chat("pause", stream=True)) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = (line for line in answer.iter_lines() if line)
        first = [next(lines) for _ in range(3)]
        upstream.held = False  # until now it has made no more than these
        rest = list(lines)
    assert len(first + rest) == 7
    assert rest[-1] == "data: [DONE]"
    assert upstream.requests[0]["model"] == DEPLOYMENT


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/infer", "/v1/chat/completions"])
def test_a_client_that_leaves_is_gone_upstream(
    proxy: TierProcess, upstream: SmallUpstream, path: str, stream: bool
) -> None:
    body = chat("hang", stream=stream)
    if path == "/infer":
        body = {"session_id": "s", "seq_no": 1, "data": {"message": "hang"}}
    ask_and_leave(proxy.url + path, body, lambda: upstream.requests)
    wait_for(lambda: upstream.left_at)


def test_a_client_that_leaves_a_silent_stream_is_gone_upstream(
    proxy: TierProcess, upstream: SmallUpstream
) -> None:
    url = f"{proxy.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=chat("stream then hang", stream=True)) as answer:
        for line in answer.iter_lines():
            if "piece 1" in line:
                break
    wait_for(lambda: upstream.left_at)


@pytest.mark.parametrize(("text", "stream"), [("die once", False), ("die in the role", True)])
def test_what_delivered_nothing_is_sent_again(
    proxy: TierProcess, upstream: SmallUpstream, text: str, stream: bool
) -> None:
    answer = httpx.post(f"{proxy.url}/v1/chat/completions", json=chat(text, stream=stream))
    assert answer.status_code == 200
    assert answer.text.count("assistant") == 1
    assert len(upstream.requests) == 2


def test_it_is_not_sent_for_ever(new_proxy: TierProcess, upstream: SmallUpstream) -> None:
    proxy = new_proxy
    answer = httpx.post(f"{proxy.url}/v1/chat/completions", json=chat("die"), timeout=60)
    assert answer.status_code == 502
    assert "rank master" in answer.json()["error"]["message"]
    assert len(upstream.requests) == 1 + MOST_FRUITLESS
    metrics = httpx.get(f"{proxy.url}/metrics").text
    assert 'request_carries_total{outcome="given_up"} 1.0' in metrics


def test_a_master_that_returns_serves_what_waited(spec: ProxySpec, tmp_path: Path) -> None:
    with SmallUpstream() as upstream:
        spec = dataclasses.replace(spec, upstream_url=upstream.url)
        with TierProcess("proxy_block", spec, tmp_path) as proxy:
            url = f"{proxy.url}/v1/chat/completions"
            assert httpx.post(url, json=chat("hello")).status_code == 200
            upstream.stop()
            assert_served_when_it_is_back(proxy, upstream.port)


def assert_served_when_it_is_back(proxy: TierProcess, port: int) -> None:
    answers: list[httpx.Response] = []
    url = f"{proxy.url}/v1/chat/completions"
    waiting = threading.Thread(
        target=lambda: answers.append(httpx.post(url, json=chat("hello"), timeout=30))
    )
    waiting.start()
    assert httpx.get(f"{proxy.url}/readyz").status_code == 503
    assert httpx.get(f"{proxy.url}/readyz?self").status_code == 200
    with SmallUpstream(port):
        waiting.join(60)
    assert answers[0].status_code == 200


def test_a_stream_of_an_engine_without_ids_that_is_cut_in_the_middle_says_so(
    proxy: TierProcess, upstream: SmallUpstream
) -> None:
    body = chat("die in the middle", stream=True)
    with httpx.stream("POST", f"{proxy.url}/v1/chat/completions", json=body) as answer:
        lines = events(answer)
    assert "piece 1" in lines[-2]
    error = json.loads(lines[-1])["error"]
    assert error["code"] == "upstream_died_mid_stream"
    assert error["request_id"] == answer.headers["x-request-id"]
    assert len(upstream.requests) == 1


def test_the_deadline_ends_a_request(
    upstream: SmallUpstream, spec: ProxySpec, tmp_path: Path
) -> None:
    spec = dataclasses.replace(spec, request_deadline_s=0.5)
    with TierProcess("proxy_block", spec, tmp_path) as proxy:
        data = {"session_id": "s", "seq_no": 1, "data": {"message": "hang"}}
        for path, body in (("/infer", data), ("/v1/chat/completions", chat("hang"))):
            answer = httpx.post(proxy.url + path, json=body)
            assert answer.status_code == 504
            assert "0.5 s" in answer.json()["error"]["message"]
        body = chat("stream then hang", stream=True)
        answer = httpx.post(f"{proxy.url}/v1/chat/completions", json=body)
        assert "deadline_exceeded" in answer.text.splitlines()[-2]
    wait_for(lambda: len(upstream.left_at) == 3)


def test_a_client_that_stops_reading_is_held_until_the_deadline_only(
    upstream: SmallUpstream, spec: ProxySpec, tmp_path: Path
) -> None:
    spec = dataclasses.replace(spec, request_deadline_s=1.0)
    content = json.dumps(chat("flood", stream=True))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
    # What a client that does not read may take longer than its deadline.
    with TierProcess("proxy_block", spec, tmp_path, last_send_s=1.0) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            client.sendall(f"{head}Content-Type: application/json\r\n\r\n{content}".encode())
            wait_for(lambda: upstream.in_flight == 0 and upstream.left_at)
            time.sleep(1.5)
            client.settimeout(60)
            while client.recv(1 << 20):
                pass
        proxy.terminate()
        assert proxy.process.wait(60) == 0


def test_readiness_is_the_masters(proxy: TierProcess, upstream: SmallUpstream) -> None:
    assert httpx.get(f"{proxy.url}/readyz").status_code == 200
    upstream.reason = "waiting for rank 1"
    answer = httpx.get(f"{proxy.url}/readyz")
    assert answer.status_code == 503
    assert "waiting for rank 1" in answer.json()["reason"]


def test_models_and_metrics(new_proxy: TierProcess) -> None:
    proxy = new_proxy
    models = httpx.get(f"{proxy.url}/v1/models").json()
    assert models["data"][0]["id"] == MODEL
    metrics = httpx.get(f"{proxy.url}/metrics").text
    assert 'http_requests_total{route="/v1/models",status="200"} 1.0' in metrics


def test_sigterm_lets_a_stream_end_and_refuses_new_work(
    proxy: TierProcess, upstream: SmallUpstream
) -> None:
    url = f"{proxy.url}/v1/chat/completions"
    upstream.held = True
    with httpx.stream("POST", url, json=chat("pause", stream=True)) as answer:
        lines = answer.iter_lines()
        next(lines)
        proxy.terminate()
        wait_for(lambda: httpx.get(f"{proxy.url}/readyz?self").status_code == 503)
        refused = httpx.post(url, json=chat("new"))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        upstream.held = False
        assert list(lines)[-2] == "data: [DONE]"
    assert proxy.process.wait(60) == 0


def test_a_busy_port_is_one_sentence_and_exit_code_2(
    proxy: TierProcess, spec: ProxySpec, tmp_path: Path
) -> None:
    second = TierProcess("proxy_block", spec, tmp_path, port=proxy.port)
    assert second.process.wait(60) == 2
    assert f"port 127.0.0.1:{proxy.port} is in use" in second.errors()


def test_a_spec_edited_to_nonsense_is_exit_code_2(spec: ProxySpec, tmp_path: Path) -> None:
    spec = dataclasses.replace(spec, generation_config={"temperature": "hot"})
    process = TierProcess("proxy_block", spec, tmp_path)
    assert process.process.wait(60) == 2
    assert "generation_config: temperature = 'hot'" in process.errors()


def test_a_body_beyond_the_specs_limit_is_refused(
    upstream: SmallUpstream, spec: ProxySpec, tmp_path: Path
) -> None:
    spec = dataclasses.replace(spec, max_body_bytes=200)
    with TierProcess("proxy_block", spec, tmp_path) as proxy:
        for path in ("/infer", "/management", "/v1/chat/completions"):
            answer = httpx.post(proxy.url + path, json={"data": "x" * 200})
            assert answer.status_code == 413
            assert "200 bytes" in answer.json()["error"]["message"]


def test_a_block_asked_directly_is_a_domain_of_its_own(
    proxy: TierProcess, upstream: SmallUpstream
) -> None:
    given: list[dict[str, str]] = [{}, {HEADER: "not one"}, {HEADER: domain_of("ann")}]
    for headers in given:
        httpx.post(f"{proxy.url}/v1/chat/completions", json=chat("x"), headers=headers)
    own = domain_of("block-1")
    assert [headers[HEADER] for headers in upstream.headers] == [own, own, domain_of("ann")]
