"""A proxy block that is killed under its requests: real processes, a small service behind them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from contract.carry import ASKS_FOR_IDS, HEADER
from contract.specs import BlockSpec, ProxySpec
from tests.inference_server.conftest import Tiers
from tests.waiting import wait_for
from tests.web.carrying_service import CarryingService, in_a_thread
from tests.web.tier_process import TierProcess

# Many processes, killed and silent for seconds; tests/web shows each rule in one.
pytestmark = pytest.mark.slow

BLOCK = "block-1"
CHAT: dict[str, Any] = {"model": BLOCK, "messages": [{"role": "user", "content": "x"}]}
HELD_AT = 30  # pieces of an answer, while it is held


@pytest.fixture(scope="module")
def service() -> Iterator[CarryingService]:
    with in_a_thread(CarryingService(choices=2, tokens=20)) as service:
        service.pause_s = 0.002
        yield service


@pytest.fixture
def spec(tiers: Tiers, service: CarryingService) -> ProxySpec:
    tiers.upstream.url, usual = service.url, tiers.upstream.url
    try:
        return tiers.proxy_spec(BLOCK)
    finally:
        tiers.upstream.url = usual


def start(tiers: Tiers, spec: ProxySpec, port: int | None = None) -> TierProcess:
    return tiers.entered(TierProcess("proxy_block", spec, tiers.folder, port))


@pytest.fixture
def proxies(tiers: Tiers, spec: ProxySpec) -> list[TierProcess]:
    return [start(tiers, spec), start(tiers, spec)]


def server_of(tiers: Tiers, *proxies: TierProcess) -> TierProcess:
    log = str(tiers.folder / f"log-{proxies[0].port}.sqlite3")
    block = BlockSpec(BLOCK, "", replica_urls=tuple(one.url for one in proxies))
    return tiers.server(block, request_log_path=log, request_deadline_s=60)


def chat(server: TierProcess, **more: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=CHAT | more, timeout=60)


def row_of(server: TierProcess, answer: httpx.Response) -> dict[str, Any]:
    found = httpx.get(f"{server.url}/logs/request/{answer.headers['x-request-id']}").json()
    [row] = found["data"]
    assert isinstance(row, dict)
    return row


def asked_of(server: TierProcess) -> str:
    """The replica that has a request."""
    [block] = httpx.get(f"{server.url}/v1/blocks").json()["data"]
    return next((one["url"] for one in block["replicas"] if one["in_flight"]), "")


def carries(server: TierProcess, outcome: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    line = f'request_carries_total{{outcome="{outcome}"}} '
    return float(text.partition(line)[2].partition("\n")[0])


@pytest.mark.parametrize("stream", [True, False])
def test_another_replica_goes_on(
    tiers: Tiers, proxies: list[TierProcess], service: CarryingService, stream: bool
) -> None:
    server = server_of(tiers, *proxies)
    undisturbed = chat(server, stream=stream)
    before = len(service.asked)
    service.holds_at = HELD_AT
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(chat, server, stream=stream)
        doomed = killed_under(server, proxies, service, before, delivered=True)
        answer = asking.result()
    assert answer.content == undisturbed.content
    assert answer.headers["content-type"] == undisturbed.headers["content-type"]
    # What was delivered is not computed again.
    assert sum(map(len, service.asked[-1]["carry"]["ids"])) > 0
    row = row_of(server, answer)
    assert row["replica"] == next(one.url for one in proxies if one is not doomed)
    assert (row["outcome"], row["prompt_tokens"], row["completion_tokens"]) == ("ok", 5, 40)
    assert (carries(server, "went_on"), carries(server, "given_up")) == (1, 0)


def killed_under(
    server: TierProcess,
    proxies: list[TierProcess],
    service: CarryingService,
    before: int,
    *,
    delivered: bool = False,
) -> TierProcess:
    """Once the first half of the answer has been told, and has come to the inference server where
    that matters; who asks again is told the rest."""
    wait_for(lambda: len(service.asked) > before and service.holding)
    if delivered:
        time.sleep(2)  # nobody tells: it takes milliseconds
    url = wait_for(lambda: asked_of(server))
    doomed = next(one for one in proxies if one.url == url)
    doomed.process.kill()
    doomed.process.wait()
    service.holds_at = None
    return doomed


@pytest.mark.parametrize("stream", [True, False])
def test_the_same_replica_goes_on_when_it_is_back(
    tiers: Tiers, spec: ProxySpec, service: CarryingService, stream: bool
) -> None:
    proxy = start(tiers, spec)
    server = server_of(tiers, proxy)
    undisturbed = chat(server, stream=stream)
    before, service.holds_at = len(service.asked), HELD_AT
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(chat, server, stream=stream)
        killed_under(server, [proxy], service, before)
        time.sleep(0.5)
        start(tiers, spec, proxy.port)
        assert asking.result().content == undisturbed.content


def test_a_turn_whose_proxy_dies_is_answered_and_recorded_once(
    tiers: Tiers, spec: ProxySpec, service: CarryingService
) -> None:
    proxy = start(tiers, spec)
    server = server_of(tiers, proxy)
    before = len(service.asked)

    def turn(seq_no: int) -> httpx.Response:
        data = {"message": f"turn {seq_no}"}
        body = {"model": BLOCK, "session_id": "s", "seq_no": seq_no, "data": data}
        return httpx.post(f"{server.url}/v1/infer", json=body, timeout=60)

    service.holds_at = HELD_AT
    with ThreadPoolExecutor(1) as threads:
        asking: Future[httpx.Response] = threads.submit(turn, 1)
        killed_under(server, [proxy], service, before)
        start(tiers, spec, proxy.port)
        answer = asking.result()
    assert answer.status_code == 200, answer.text
    reply = answer.json()["data"]["reply"]
    assert turn(1).json()["data"]["reply"] == reply
    assert len(service.asked) == before + 2
    assert turn(2).status_code == 200
    contents = [message["content"] for message in service.asked[-1]["messages"]]
    assert contents == ["turn 1", reply, "turn 2"]
    row = row_of(server, answer)
    assert (row["outcome"], row["completion_tokens"]) == ("ok", 40)


def test_a_client_that_leaves_while_its_request_waits_is_let_go(
    tiers: Tiers, spec: ProxySpec, service: CarryingService
) -> None:
    proxy = start(tiers, spec)
    server = server_of(tiers, proxy)
    before, service.holds_at = len(service.asked), HELD_AT
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=CHAT | {"stream": True}, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        killed_under(server, [proxy], service, before)
        time.sleep(0.5)
    wait_for(lambda: not asked_of(server) and row_of(server, answer))
    assert row_of(server, answer)["outcome"] == "cancelled"
    gauge = 'http_requests_in_flight{route="/v1/chat/completions"} 0.0'
    assert gauge in httpx.get(f"{server.url}/metrics").text


def test_a_forged_header_does_nothing_and_a_forged_field_is_refused(
    tiers: Tiers, spec: ProxySpec, service: CarryingService
) -> None:
    proxy = start(tiers, spec)
    server = server_of(tiers, proxy)
    forged = {HEADER: ASKS_FOR_IDS}
    url = f"{server.url}/v1/chat/completions"
    answer = httpx.post(url, json=CHAT | {"stream": True}, headers=forged, timeout=30)
    assert (answer.status_code, ": carry" in answer.text) == (200, False)
    answer = httpx.post(url, json=CHAT, headers=forged, timeout=30)
    assert answer.json() == service.body
    infer = {"model": BLOCK, "session_id": "s", "seq_no": 1, "data": "x"}
    for path, body in (("chat/completions", CHAT), ("completions", CHAT), ("infer", infer)):
        for value in ({}, None) if path != "infer" else ({},):
            refused = httpx.post(f"{server.url}/v1/{path}", json=body | {"carry": value})
            error = refused.json()["error"]
            assert (refused.status_code, error["param"]) == (400, "carry")
            assert "is not a field of this request" in error["message"]
