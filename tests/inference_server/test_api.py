"""The public API in front of a real proxy block and a small upstream."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from contract.specs import BlockSpec, InferenceServerSpec, ProxySpec, SessionsSpec
from tests.waiting import free_ports, wait_for
from tests.web.leaving_client import ask_and_leave
from tests.web.small_upstream import DEPLOYMENT, MODEL, USAGE, SmallUpstream
from tests.web.tier_process import TierProcess

BLOCK = "pytorch-block-3"
SESSIONS = itertools.count(100)
REQUEST: dict[str, Any] = {
    "model": BLOCK,
    "session_id": "session-3",
    "seq_no": 20,
    "data": {
        "mode": "completions",
        "generation_config": {
            "max_new_tokens": 1024,
            "do_sample": False,
            "top_k": 50,
            "top_p": 0.95,
            "temperature": 1.0,
        },
        "message": "Give me code for adding two integers list element wise in python",
        "system_message": "You are a helpful assistant that provides code examples.",
    },
    "graph": {},
    "selection_query": {},
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[SmallUpstream]:
    with SmallUpstream() as upstream:
        upstream.max_model_len, upstream.merges_system = 100_000, True
        yield upstream


@pytest.fixture(scope="module")
def server(
    upstream: SmallUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TierProcess]:
    """The public API, a block that works and one that nobody serves."""
    folder = tmp_path_factory.mktemp("inference")
    sessions = SessionsSpec(str(folder / "sessions.sqlite3"))
    defaults = {"min_p": 0.5}
    proxy_spec = ProxySpec(
        BLOCK, DEPLOYMENT, upstream.url, sessions=sessions, generation_config=defaults
    )
    with TierProcess("proxy_block", proxy_spec, folder) as proxy:
        dead = BlockSpec("dead-block", f"http://127.0.0.1:{free_ports(1)[0]}")
        spec = InferenceServerSpec(DEPLOYMENT, (BlockSpec(BLOCK, proxy.url), dead))
        with TierProcess("inference_server", spec, folder, patience_s=1) as server:
            yield server


def infer(server: TierProcess, **change: Any) -> httpx.Response:
    """In a session of its own: a seq_no that was answered is not asked again."""
    session = {"session_id": f"session-{next(SESSIONS)}"}
    return httpx.post(f"{server.url}/v1/infer", json=REQUEST | session | change)


def test_the_notebooks_request(server: TierProcess, upstream: SmallUpstream) -> None:
    answer = infer(server, session_id="session-3").json()
    assert abs(answer.pop("ts") - time.time()) < 60
    message = REQUEST["data"]["message"]
    assert answer == {
        "model": BLOCK,
        "session_id": "session-3",
        "seq_no": 20,
        "data": {"generated": f"2 messages: {message}", "usage": USAGE},
    }
    assert upstream.requests[-1]["max_tokens"] == 1024
    assert upstream.requests[-1]["temperature"] == 0


def test_null_means_left_out(server: TierProcess) -> None:
    assert infer(server, graph=None, selection_query=None).status_code == 200


@pytest.mark.parametrize("name", [BLOCK, MODEL, DEPLOYMENT])
def test_the_openai_client_works_unchanged(server: TierProcess, name: str) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused")
    messages: Any = [{"role": "user", "content": "hello"}]
    whole = client.chat.completions.create(model=name, messages=messages)
    assert whole.choices[0].message.content == "1 messages: hello"
    stream = client.chat.completions.create(model=name, messages=messages, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "".join(f"piece {number} " for number in range(5))
    completion = client.completions.create(model=name, prompt="hello")
    assert completion.choices[0].text == "0 messages: hello"
    assert client.models.list().data[0].id == BLOCK


def test_models_say_how_long_a_request_may_be(server: TierProcess) -> None:
    models = httpx.get(f"{server.url}/v1/models").json()["data"]
    found = {model["id"]: model["max_model_len"] for model in models}
    assert found == {BLOCK: 100_000, "dead-block": None}


def test_models_say_what_stands_behind_a_block(server: TierProcess) -> None:
    first, dead = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert (first["root"], first["title"]) == (MODEL, MODEL)
    assert first["generation_config"] == {"min_p": 0.5}
    assert (dead["root"], dead["title"], dead["generation_config"]) == (None, None, {})


def test_blocks_say_whose_model_reads_no_system_messages(server: TierProcess) -> None:
    blocks = httpx.get(f"{server.url}/v1/blocks").json()["data"]
    found = {block["id"]: block["merges_system_messages"] for block in blocks}
    assert found == {BLOCK: True, "dead-block": False}


@pytest.mark.parametrize("path", ["/v1/infer", "/v1/chat/completions"])
def test_a_client_that_leaves_is_gone_behind_both_tiers(
    server: TierProcess, upstream: SmallUpstream, path: str
) -> None:
    upstream.left_at.clear()
    body: dict[str, Any] = REQUEST | {"data": {"message": "hang"}, "session_id": "leaves"}
    if path != "/v1/infer":
        body = {"model": BLOCK, "messages": [{"role": "user", "content": "hang"}]}
    before = len(upstream.requests)
    ask_and_leave(server.url + path, body, lambda: len(upstream.requests) > before)
    wait_for(lambda: upstream.left_at)


def test_readiness_is_that_of_some_block(server: TierProcess, upstream: SmallUpstream) -> None:
    for path in ("/readyz", "/health"):  # the latter for clients of other engines
        assert httpx.get(server.url + path).status_code == 200
    upstream.reason = "the group forms"
    try:
        answer = httpx.get(f"{server.url}/readyz")
        assert httpx.get(f"{server.url}/health").json() == answer.json()
    finally:
        upstream.reason = ""
    assert answer.status_code == 503
    assert "the group forms" in answer.json()["reason"]
    assert "dead-block" in answer.json()["reason"]
    assert httpx.get(f"{server.url}/readyz?self").status_code == 200


def test_errors_of_the_tiers_behind_pass(server: TierProcess) -> None:
    refused = infer(server, data={"message": "refuse"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "refused")
    dead = infer(server, model="dead-block")
    assert dead.status_code == 503
    assert "block dead-block" in dead.json()["error"]["message"]


def test_the_request_id_goes_through(server: TierProcess) -> None:
    headers = {"X-Request-Id": "mine-1"}
    body = REQUEST | {"data": {"message": "x", "mode": "other"}}
    answer = httpx.post(f"{server.url}/v1/infer", json=body, headers=headers)
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.json()["error"]["request_id"] == "mine-1"


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "nobody"}, 404, "model"),
        ({"model": ["x"]}, 400, "model"),
        ({"model": ""}, 400, "model"),
        ({"session_id": None}, 400, "session_id"),
        ({"seq_no": -1}, 400, "seq_no"),
        ({"seq_no": 1.5}, 400, "seq_no"),
        ({"seq_no": True}, 400, "seq_no"),
        ({"seq_no": 10**30}, 400, "seq_no"),
        ({"data": None}, 400, "data"),
        ({"data": ["text"]}, 400, "data"),
        ({"data": {"mode": "tokens", "message": "x"}}, 400, "data.mode"),
        ({"data": {"message": "x", "files": ["a"]}}, 400, "data.files"),
        ({"data": '{"message": "x", "file": "a"}'}, 400, "data.file"),
        ({"graph": {"nobody": []}}, 400, "graph"),
        ({"graph": []}, 400, "graph"),
        ({"model": "", "graph": {"is_graph": False, "graph": {}}}, 400, "model"),
        ({"selection_query": {"tags": ["x"]}}, 404, "selection_query"),
        ({"selection_query": {"tags": "x"}}, 400, "selection_query.tags"),
        ({"surplus": 1}, 400, "surplus"),
        ({"files": {"a": "b"}}, 400, "files"),
        ({"timeout": 1200}, 400, "timeout"),
    ],
)
def test_bad_fields_are_named(
    server: TierProcess, change: dict[str, Any], status: int, param: str
) -> None:
    answer = infer(server, **change)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["param"] == param
    assert param in error["message"]


def test_what_aios_sends_beside_asks_for_nothing(server: TierProcess) -> None:
    data = {"mode": "generate", "prompt": "hello", "files": {}}
    answer = infer(server, ts=1.5, files={}, retries=0, timeout=None, data=data)
    assert answer.json()["data"]["generated"] == "1 messages: hello"


def test_a_wrong_name_is_answered_with_the_right_one(server: TierProcess) -> None:
    error = infer(server, selectionQuery={}).json()["error"]
    assert "did you mean selection_query?" in error["message"]


def test_an_unknown_block_lists_the_known_ones(server: TierProcess) -> None:
    assert f"{BLOCK}, dead-block" in infer(server, model="nobody").json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe{}", 400),
        (b'{"model": "\xff"}', 400),
        (json.dumps(REQUEST | {"seq_no": float("nan")}).encode(), 400),
        (b'{"model": "pytorch-block-3", "messages": [], "temperature": 1e999}', 400),
        (b'{"model": "\\ud800"}', 400),
        (b'{"a":' * 100_000, 400),
        (b'{"seq_no": ' + b"9" * 10_000 + b"}", 400),
        (b'{"model": "' + b"x" * 10_000_000 + b'"}', 413),
    ],
    ids=[
        "empty",
        "cut",
        "list",
        "utf16",
        "utf8",
        "nan",
        "overflow",
        "surrogate",
        "deep",
        "digits",
        "10mb",
    ],
)
@pytest.mark.parametrize("path", ["/v1/infer", "/v1/chat/completions"])
def test_bad_bodies_get_the_stable_body_and_cost_nothing(
    server: TierProcess, path: str, content: bytes, status: int
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(server.url + path, content=content, headers=headers)
    assert answer.status_code == status
    assert {"message", "type", "param", "code", "request_id"} <= answer.json()["error"].keys()
    assert len(answer.content) < 1000
    assert infer(server).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/infer", 405), ("GET", "/nowhere", 404)]
)
def test_unknown_paths_and_methods(
    server: TierProcess, method: str, path: str, status: int
) -> None:
    answer = httpx.request(method, server.url + path)
    assert answer.status_code == status
    assert path in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/tokenize", "/v1/embeddings"])
def test_who_asks_for_another_api_is_told_what_is_served(server: TierProcess, path: str) -> None:
    response = httpx.post(f"{server.url}{path}", json={})
    assert response.status_code == 404
    message = response.json()["error"]["message"]
    assert "/v1/infer, /v1/chat/completions, /v1/completions" in message


def test_a_busy_port_and_a_bad_spec_are_exit_code_2(server: TierProcess, tmp_path: Path) -> None:
    spec = InferenceServerSpec(DEPLOYMENT, ())
    second = TierProcess("inference_server", spec, tmp_path, port=server.port)
    assert second.process.wait(60) == 2
    assert "is in use" in second.errors()
