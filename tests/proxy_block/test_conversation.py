"""The block protocol, through a real process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.contract import ProxySpec, SessionsSpec
from tests.service.small_upstream import MODEL, USAGE, SmallUpstream
from tests.service.tier_process import TierProcess


def infer(proxy: TierProcess, session_id: str = "s", **data: Any) -> httpx.Response:
    body = {"session_id": session_id, "seq_no": 1, "data": data}
    return httpx.post(f"{proxy.url}/infer", json=body, timeout=40)


def test_completions_takes_the_template_without_history(
    proxy: TierProcess, upstream: SmallUpstream
) -> None:
    greedy = {"max_new_tokens": 9, "do_sample": False, "top_k": 50, "top_p": 0.9}
    for _ in range(2):
        answer = infer(
            proxy,
            mode="completions",
            message="hello",
            system_message="short",
            generation_config=greedy,
        )
        assert answer.json() == {"data": {"generated": "2 messages: hello", "usage": USAGE}}
    assert upstream.requests[-1] == {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "short"},
            {"role": "user", "content": "hello"},
        ],
        "max_tokens": 9,
        "temperature": 0,
    }


def test_chat_history_survives_a_restart(
    proxy: TierProcess, upstream: SmallUpstream, spec: ProxySpec, tmp_path: Path
) -> None:
    first = infer(proxy, mode="chat", message="one", system_message="mine").json()["data"]
    assert first == {"reply": "2 messages: one", "usage": USAGE}
    proxy.process.kill()
    proxy.process.wait()
    with TierProcess("proxy_block", spec, tmp_path) as restarted:
        infer(restarted, mode="chat", message="two")
        contents = [message["content"] for message in upstream.requests[-1]["messages"]]
        assert contents == ["mine", "one", "2 messages: one", "two"]
        infer(restarted, "another", mode="chat", message="three")
        contents = [message["content"] for message in upstream.requests[-1]["messages"]]
        assert contents == ["the block's", "three"]
    assert upstream.requests[-1]["temperature"] == 0.5
    assert upstream.requests[-1]["max_tokens"] == 20


def test_reset_forgets_one_session(proxy: TierProcess, upstream: SmallUpstream) -> None:
    for session_id in ("a", "b"):
        infer(proxy, session_id, mode="chat", message="one")
    command = {"action": "reset", "data": {"session_id": "a"}}
    answer = httpx.post(f"{proxy.url}/management", json=command).json()
    assert answer == {"action": "reset", "data": {"sessions_reset": 1}}
    assert infer(proxy, "a", message="x").json()["data"]["reply"] == "2 messages: x"
    assert infer(proxy, "b", message="x").json()["data"]["reply"] == "4 messages: x"


def test_requests_of_one_session_follow_each_other(
    proxy: TierProcess, upstream: SmallUpstream
) -> None:
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: infer(proxy, message="slow"), range(4)))
        assert upstream.most_in_flight == 1
        replies = sorted(answer.json()["data"]["reply"] for answer in answers)
        assert replies == [f"{count} messages: slow" for count in (2, 4, 6, 8)]
        list(threads.map(lambda name: infer(proxy, name, message="slow"), "abcd"))
    assert upstream.most_in_flight > 1


def test_a_history_beyond_the_model_loses_its_oldest_turns(
    proxy: TierProcess, upstream: SmallUpstream
) -> None:
    upstream.too_many_messages = 6
    for number in range(5):
        answer = infer(proxy, message=f"turn {number}")
        assert answer.status_code == 200, answer.text
    contents = [message["content"] for message in upstream.requests[-1]["messages"]]
    assert contents[0] == "the block's"
    assert contents[-1] == "turn 4"
    assert "turn 0" not in contents


def test_what_the_master_refuses_passes_with_its_body_and_writes_no_turn(
    proxy: TierProcess,
) -> None:
    answer = infer(proxy, message="refuse")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "refused"
    assert infer(proxy, message="x").json()["data"]["reply"] == "2 messages: x"


@pytest.fixture(scope="module")
def shared_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TierProcess]:
    """One process for all of it: bad input must not cost it anything."""
    folder = tmp_path_factory.mktemp("proxy")
    sessions = SessionsSpec(str(folder / "sessions.sqlite3"))
    spec = ProxySpec("b", "d", MODEL, "http://127.0.0.1:9", sessions=sessions)
    with TierProcess("proxy_block", spec, folder) as process:
        yield process


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"seq_no": -1}, "seq_no"),
        ({"seq_no": "1"}, "seq_no"),
        ({"session_id": ""}, "session_id"),
        ({"session_id": 5}, "session_id"),
        ({"surplus": 1}, "surplus"),
        ({"data": []}, "data"),
        ({"data": {}}, "data.message"),
        ({"data": {"message": 5}}, "data.message"),
        ({"data": {"message": "x", "mode": "generate"}}, "data.mode"),
        ({"data": {"message": "x", "inputs": []}}, "data.inputs"),
        (
            {"data": {"message": "x", "generation_config": {"temperature": -0.1}}},
            "data.generation_config.temperature",
        ),
        (
            {"data": {"message": "x", "generation_config": {"max_new_tokens": 0}}},
            "data.generation_config.max_new_tokens",
        ),
        (
            {"data": {"message": "x", "generation_config": {"do_sample": "no"}}},
            "data.generation_config.do_sample",
        ),
        (
            {"data": {"message": "x", "generation_config": {"beams": 4}}},
            "data.generation_config.beams",
        ),
    ],
)
def test_bad_fields_are_named(
    change: dict[str, Any], param: str, shared_proxy: TierProcess
) -> None:
    body = {"session_id": "s", "seq_no": 1, "data": {"message": "x"}} | change
    answer = httpx.post(f"{shared_proxy.url}/infer", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert param in error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]
