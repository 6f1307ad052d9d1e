"""API keys and their limits: over HTTP, and what a key may use at a time and per minute."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from contract.api_keys import ApiKey
from contract.specs import BlockSpec, InferenceServerSpec
from inference_server.keys.access import KeyUse
from tests.inference_server.conftest import Tiers
from tests.waiting import wait_for
from tests.web.small_upstream import DEPLOYMENT
from tests.web.tier_process import TierProcess
from web.domain import HEADER, domain_of
from web.errors import ApiError

BLOCK = "block-1"


def entry(name: str, **limits: Any) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(f"sk-{name}".encode()).hexdigest(), **limits}


KEYS = [
    entry("ann"),
    entry("bob", max_concurrent=1),
    entry("carl", tokens_per_minute=5),
    entry("dora", tokens_per_minute=5),
    entry("root", reads_all_logs=True),
]


@pytest.fixture(scope="module")
def keys_file(tiers: Tiers) -> Path:
    path = tiers.folder / "keys.json"
    path.write_text(json.dumps(KEYS))
    return path


@pytest.fixture(scope="module")
def server(tiers: Tiers, keys_file: Path) -> TierProcess:
    proxy = tiers.proxy(BLOCK)
    log = str(tiers.folder / "requests.sqlite3")
    options = ("--api-keys-file", str(keys_file))
    return tiers.server(BlockSpec(BLOCK, proxy.url), options=options, request_log_path=log)


def authorization(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer sk-{name}"}


def chat(server: TierProcess, name: str, text: str = "x", **more: Any) -> httpx.Response:
    body = {"model": BLOCK, "messages": [{"role": "user", "content": text}], **more}
    url = f"{server.url}/v1/chat/completions"
    return httpx.post(url, json=body, headers=authorization(name), timeout=30)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/infer"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/blocks"),
        ("GET", "/logs/block/block-1"),
        ("GET", "/nowhere"),
        ("GET", "//metrics"),
    ],
)
@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer sk-eve", "Basic sk-ann", "sk-ann", "Bearer sk-ann x"]
)
def test_without_a_key_nothing_is_served(
    server: TierProcess, method: str, path: str, given: str
) -> None:
    headers = {"Authorization": given} if given else {}
    answer = httpx.request(method, server.url + path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert "sk-" not in answer.text


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_probes_and_metrics_need_none(server: TierProcess, path: str) -> None:
    assert httpx.get(server.url + path).status_code == 200


def test_the_official_client_gets_its_own_errors(server: TierProcess) -> None:
    messages: Any = [{"role": "user", "content": "x"}]
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-ann", max_retries=0)
    assert client.chat.completions.create(model=BLOCK, messages=messages).choices
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-eve").models.list()


def test_requests_at_a_time(server: TierProcess, tiers: Tiers) -> None:
    before = tiers.upstream.in_flight
    answers: list[httpx.Response] = []
    first = threading.Thread(target=lambda: answers.append(chat(server, "bob", "slow")))
    with tiers.held():
        first.start()
        wait_for(lambda: tiers.upstream.in_flight > before)
        refused = chat(server, "bob")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert chat(server, "ann").status_code == 200
    first.join()
    assert answers[0].status_code == 200
    assert chat(server, "bob").status_code == 200


def test_a_stream_that_is_left_gives_its_place_back(server: TierProcess) -> None:
    body = {
        "model": BLOCK,
        "messages": [{"role": "user", "content": "stream then hang"}],
        "stream": True,
    }
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=authorization("bob")) as stream:
        pieces = stream.iter_bytes()
        next(pieces)
        assert chat(server, "bob").status_code == 429
    wait_for(lambda: chat(server, "bob").status_code == 200)


def test_tokens_per_minute(server: TierProcess) -> None:
    assert chat(server, "carl").status_code == 200  # the upstream says 10 tokens
    refused = chat(server, "carl")
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 120  # 10 tokens at 5 a minute
    assert refused.json()["error"]["code"] == "token_rate_limit_exceeded"
    assert httpx.get(f"{server.url}/v1/models", headers=authorization("carl")).status_code == 200


def test_who_hangs_up_early_pays_for_the_prompt(server: TierProcess) -> None:
    messages = [{"role": "user", "content": "stream then hang"}]
    body = {"model": BLOCK, "messages": messages, "stream": True}
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=authorization("dora")) as stream:
        next(stream.iter_bytes())
    wait_for(lambda: chat(server, "dora").status_code == 429)
    wait_s = int(chat(server, "dora").headers["retry-after"])
    assert wait_s > 120  # more than the few events that came


def test_a_key_has_sessions_of_its_own(server: TierProcess, tiers: Tiers) -> None:
    def infer(name: str, text: str) -> dict[str, Any]:
        body = {"model": BLOCK, "session_id": "shared", "seq_no": 1, "data": {"message": text}}
        answer = httpx.post(f"{server.url}/v1/infer", json=body, headers=authorization(name))
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        assert document["session_id"] == "shared"
        return document["data"]

    assert infer("ann", "mine")["reply"] == "1 messages: mine"
    assert infer("root", "other")["reply"] == "1 messages: other"
    assert infer("ann", "again")["reply"] == "1 messages: mine"  # its seq_no was answered
    url = f"{server.url}/logs/session/shared"
    logged = httpx.get(url, headers=authorization("ann")).json()["data"]
    assert [row["session_id"] for row in logged] == ["shared"] * 2
    proxy = logged[0]["replica"]
    reset = {"action": "reset", "data": {"session_id": "ann/shared"}}
    answer = httpx.post(f"{proxy}/management", json=reset)
    assert answer.json()["data"] == {"sessions_reset": 1}


def test_a_key_reads_its_own_requests(server: TierProcess) -> None:
    chat(server, "ann", user="somebody")
    url = f"{server.url}/logs/block/{BLOCK}"
    callers = {
        name: {row["caller"] for row in httpx.get(url, headers=authorization(name)).json()["data"]}
        for name in ("ann", "root")
    }
    assert callers["ann"] == {"ann"}
    assert callers["root"] >= {"ann", "bob", "carl"}
    row = httpx.get(url, headers=authorization("ann")).json()["data"][-1]
    assert (row["user"], row["question"], row["answer"]) == ("somebody", None, None)


def test_a_key_is_revoked_without_a_restart(server: TierProcess, keys_file: Path) -> None:
    assert chat(server, "ann").status_code == 200
    keys_file.write_text(json.dumps([one for one in KEYS if one["name"] != "ann"]))
    try:
        wait_for(lambda: chat(server, "ann").status_code == 401)
        assert chat(server, "root").status_code == 200
    finally:
        keys_file.write_text(json.dumps(KEYS))
    wait_for(lambda: chat(server, "ann").status_code == 200)


def test_keys_are_in_no_log(server: TierProcess) -> None:
    chat(server, "eve")
    assert "sk-" not in server.errors()


def test_a_bad_file_is_exit_code_2(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text('[{"name": "x", "sha256": "sk-oops"}]')
    spec = InferenceServerSpec(DEPLOYMENT, ())
    server = TierProcess("inference_server", spec, tmp_path, None, "--api-keys-file", str(keys))
    assert server.process.wait(60) == 2
    assert "sha256" in server.errors()
    assert "sk-oops" not in server.errors()


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("inference_server.keys.access.time", clock)
    return clock


def key(**limits: Any) -> ApiKey:
    return ApiKey(name="ann", sha256="0" * 64, **limits)


def refused(use: KeyUse, of: ApiKey) -> ApiError:
    with pytest.raises(ApiError) as error:
        use.take(of)
    assert error.value.status == 429
    return error.value


def test_a_key_has_so_many_places() -> None:
    use = KeyUse()
    use.take(key(max_concurrent=2))
    use.take(key(max_concurrent=2))
    error = refused(use, key(max_concurrent=2))
    assert error.body["error"]["code"] == "concurrency_limit_exceeded"
    assert error.headers == {"Retry-After": "1"}
    use.release()
    use.take(key(max_concurrent=2))


def test_tokens_come_back_with_time(clock: Clock) -> None:
    use, ann = KeyUse(), key(tokens_per_minute=600)
    use.take(ann)
    use.charge(599)
    use.take(ann)
    use.charge(301)
    error = refused(use, ann)
    assert error.body["error"]["code"] == "token_rate_limit_exceeded"
    wait_s = int((error.headers or {})["Retry-After"])
    assert wait_s == 31
    clock.now += wait_s - 2
    refused(use, ann)
    clock.now += 2
    use.take(ann)


def test_what_was_not_used_does_not_pile_up(clock: Clock) -> None:
    use, ann = KeyUse(), key(tokens_per_minute=60)
    clock.now += 86_400
    use.take(ann)
    use.charge(60)
    refused(use, ann)


def test_a_key_that_is_given_a_limit_owes_nothing_from_before(clock: Clock) -> None:
    use = KeyUse()
    for _ in range(3):
        use.take(key())
        use.charge(10**6)
    use.take(key())
    use.take(key(tokens_per_minute=600))


def test_without_limits_nothing_is_refused(clock: Clock) -> None:
    use = KeyUse()
    for _ in range(1000):
        use.take(key())
        use.charge(10**9)


def test_a_key_is_a_domain_that_no_client_can_choose(server: TierProcess, tiers: Tiers) -> None:
    for name in ("ann", "root", "ann"):
        headers = authorization(name) | {HEADER: domain_of("root")}
        body = {"model": BLOCK, "messages": [{"role": "user", "content": "x"}]}
        httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers)
    found = [headers[HEADER] for headers in tiers.upstream.headers[-3:]]
    assert found == [domain_of("ann"), domain_of("root"), domain_of("ann")]
