"""The block protocol, through a real process."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from contract.specs import ProxySpec, SessionsSpec
from tests.waiting import wait_for
from tests.web.small_upstream import DEPLOYMENT, USAGE, SmallUpstream
from tests.web.tier_process import TierProcess

_seq_no = itertools.count(1)


def infer(proxy: TierProcess, session_id: str = "s", **data: Any) -> httpx.Response:
    """Each request with a seq_no above the last one's."""
    return ask(proxy, data, next(_seq_no), session_id)


def ask(proxy: TierProcess, data: Any, seq_no: int, session_id: str = "s") -> httpx.Response:
    body = {"session_id": session_id, "seq_no": seq_no, "data": data}
    return httpx.post(f"{proxy.url}/infer", json=body, timeout=60)


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
        "model": DEPLOYMENT,
        "messages": [
            {"role": "system", "content": "short"},
            {"role": "user", "content": "hello"},
        ],
        "max_tokens": 9,
        "temperature": 0,
    }


def test_how_far_a_session_is(proxy: TierProcess) -> None:
    """Asked by who looks for the block that holds it; names may have anything in them."""
    name = "ann/a session, 100 %?"
    url = f"{proxy.url}/sessions/{quote(name, safe='')}"
    assert httpx.get(url).json() == {"session_id": name, "seq_no": None, "turns": 0}
    answer = ask(proxy, {"message": "one"}, 7, name)
    assert answer.status_code == 200
    assert httpx.get(url).json() == {"session_id": name, "seq_no": 7, "turns": 1}


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


def test_reasoning_stands_beside_the_reply_and_stays_out_of_the_history(
    proxy: TierProcess, upstream: SmallUpstream, spec: ProxySpec
) -> None:
    reply = "2 messages: think"
    beside = {"reasoning_content": 2 * reply, "usage": USAGE}
    first = infer(proxy, message="think").json()["data"]
    assert first == {"reply": reply, **beside}
    assert infer(proxy, mode="completions", message="think").json()["data"] == {
        "generated": reply,
        **beside,
    }
    infer(proxy, message={"reply": "two", **beside})  # as another block put it out
    contents = [message["content"] for message in upstream.requests[-1]["messages"]]
    assert contents == ["the block's", "think", reply, "two"]
    assert all("reasoning_content" not in message for message in upstream.requests[-1]["messages"])


def test_reasoning_goes_back_to_a_model_that_reads_it_again(
    upstream: SmallUpstream, spec: ProxySpec, tmp_path: Path
) -> None:
    upstream.keeps_reasoning = True
    with TierProcess("proxy_block", spec, tmp_path) as proxy:
        infer(proxy, message="think")
    with TierProcess("proxy_block", spec, tmp_path) as proxy:
        infer(proxy, message="two")
        infer(proxy, message="three")
    thought = [message.get("reasoning_content") for message in upstream.requests[-1]["messages"]]
    assert thought == [None, None, 2 * "2 messages: think", None, None, None]


def test_reset_forgets_one_session(proxy: TierProcess, upstream: SmallUpstream) -> None:
    for session_id in ("a", "b"):
        infer(proxy, session_id, mode="chat", message="one")
    command = {"action": "reset", "data": {"session_id": "a"}}
    answer = httpx.post(f"{proxy.url}/management", json=command).json()
    assert answer == {"action": "reset", "data": {"sessions_reset": 1}}
    assert infer(proxy, "a", message="x").json()["data"]["reply"] == "2 messages: x"
    assert infer(proxy, "b", message="x").json()["data"]["reply"] == "4 messages: x"


def arrived(proxy: TierProcess) -> int:
    """How many requests to /infer have come, those that are answered too."""
    counters = ("http_requests_in_flight", "http_requests_total")
    lines = httpx.get(f"{proxy.url}/metrics").text.splitlines()
    ours = [line for line in lines if line.startswith(counters) and 'route="/infer"' in line]
    return int(sum(float(line.split()[-1]) for line in ours))


def test_requests_of_one_session_follow_each_other(
    proxy: TierProcess, upstream: SmallUpstream
) -> None:
    before = arrived(proxy)
    with ThreadPoolExecutor(4) as threads:
        answering = []
        for seq_no in range(1, 5):
            answering.append(threads.submit(ask, proxy, {"message": "slow"}, seq_no))
            wait_for(lambda: arrived(proxy) == before + seq_no)  # noqa: B023
        replies = [answer.result().json()["data"]["reply"] for answer in answering]
        assert replies == [f"{count} messages: slow" for count in (2, 4, 6, 8)]
        assert upstream.most_in_flight == 1
        list(threads.map(lambda name: infer(proxy, name, message="slow"), "abcd"))
    assert upstream.most_in_flight > 1


def test_a_seq_no_is_answered_once(proxy: TierProcess, upstream: SmallUpstream) -> None:
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: ask(proxy, {"message": "slow"}, 7), range(4)))
    assert {answer.text for answer in answers} == {answers[0].text}
    assert answers[0].json()["data"]["reply"] == "2 messages: slow"
    assert ask(proxy, "another question", 7).json() == answers[0].json()
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("data", ["a completion", {"message": "a chat"}])
def test_a_lower_seq_no_is_refused_whatever_the_mode(living_proxy: TierProcess, data: Any) -> None:
    proxy = living_proxy
    assert ask(proxy, data, 5).status_code == 200
    answer = ask(proxy, data, 4)
    assert answer.status_code == 409
    error = answer.json()["error"]
    assert (error["param"], error["value"], error["code"]) == ("seq_no", "4", "seq_no_passed")
    assert "must be above 5" in error["message"]
    assert ask(proxy, data, 4, "another session").status_code == 200
    httpx.post(f"{proxy.url}/management", json={"action": "reset"})
    assert ask(proxy, data, 0).status_code == 200


def test_what_failed_may_be_asked_again(proxy: TierProcess) -> None:
    assert ask(proxy, {"message": "refuse"}, 3).status_code == 400
    assert ask(proxy, {"message": "now right"}, 3).status_code == 200


def test_recorded_answers_survive_a_kill(
    proxy: TierProcess, upstream: SmallUpstream, spec: ProxySpec, tmp_path: Path
) -> None:
    first = ask(proxy, {"message": "one"}, 1).json()
    proxy.process.kill()
    proxy.process.wait()
    with TierProcess("proxy_block", spec, tmp_path) as restarted:
        assert ask(restarted, {"message": "one"}, 1).json() == first
        assert ask(restarted, {"message": "one"}, 0).status_code == 409
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        ("hi", {"generated": "2 messages: hi"}),
        ('"hi"', {"generated": "2 messages: hi"}),
        ('{"message": "hi", "mode": "chat"}', {"reply": "2 messages: hi"}),
        ({"reply": "hi", "usage": USAGE}, {"reply": "2 messages: hi"}),
        ({"generated": "hi", "usage": None}, {"generated": "2 messages: hi"}),
        ({"reply": "hi", "mode": "completions"}, {"generated": "2 messages: hi"}),
        ({"message": {"reply": "hi"}}, {"reply": "2 messages: hi"}),
        ({"message": {"reply": {"generated": "hi"}}}, {"reply": "2 messages: hi"}),
        ("{hi", {"generated": "2 messages: {hi"}),
        ("42", {"generated": "2 messages: 42"}),
    ],
)
def test_every_form_of_a_question(
    living_proxy: TierProcess, data: Any, answer: dict[str, str]
) -> None:
    assert ask(living_proxy, data, 1, f"session of {data}").json() == {
        "data": answer | {"usage": USAGE}
    }


def test_a_batch_is_answered_in_order_and_recorded_as_one(
    proxy: TierProcess, upstream: SmallUpstream
) -> None:
    batch = ["slow", {"message": "one"}, {"reply": "two"}, ["a", "b"]]
    answers = ask(proxy, {"inputs": batch}, 1).json()["data"]
    assert [answers[0]["generated"], answers[1]["reply"], answers[2]["reply"]] == [
        "2 messages: slow",
        "2 messages: one",
        "4 messages: two",
    ]
    assert answers[3][0]["generated"] == "2 messages: a"
    assert answers[3][1] == {"generated": "2 messages: b", "usage": USAGE}
    asked = len(upstream.requests)
    assert ask(proxy, batch, 1).json()["data"] == answers
    assert len(upstream.requests) == asked
    assert ask(proxy, {"message": "three"}, 2).json()["data"]["reply"] == "6 messages: three"


def test_a_batch_that_fails_names_the_item_and_leaves_no_turn(proxy: TierProcess) -> None:
    answer = ask(proxy, [{"message": "one"}, "x", {"message": "refuse"}], 1)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("data[2]", "refused")
    assert error["message"].startswith("data[2]: ")
    assert ask(proxy, {"message": "two"}, 1).json()["data"]["reply"] == "2 messages: two"


def test_turns_that_would_not_fit_the_model_are_not_sent(
    new_proxy: TierProcess, upstream: SmallUpstream
) -> None:
    proxy = new_proxy  # it has not asked yet how much the model reads
    upstream.max_model_len = 100
    for seq_no in range(1, 4):
        assert ask(proxy, {"message": f"turn {seq_no}"}, seq_no).status_code == 200
    # By the upstream's count the first turn has 10 tokens, each later one adds 1.
    for seq_no, tokens, kept in ((4, 87, ["turn 1", "turn 2", "turn 3"]), (5, 90, ["turn 4"])):
        config = {"max_new_tokens": tokens}
        ask(proxy, {"message": f"turn {seq_no}", "generation_config": config}, seq_no)
        contents = [message["content"] for message in upstream.requests[-1]["messages"]]
        asked = [content for content in contents if content.startswith("turn")]
        assert asked[-1] == f"turn {seq_no}"
        assert asked[:-1][-len(kept) :] == kept
    assert "turn 1" not in asked
    assert len(upstream.requests) == 5


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
def living_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TierProcess]:
    """For tests with sessions of their own."""
    folder = tmp_path_factory.mktemp("proxy")
    sessions = SessionsSpec(str(folder / "sessions.sqlite3"))
    with SmallUpstream() as upstream:
        spec = ProxySpec("b", "d", upstream.url, system_message="the block's", sessions=sessions)
        with TierProcess("proxy_block", spec, folder) as process:
            yield process


@pytest.fixture(scope="module")
def shared_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TierProcess]:
    """One process for all of it: bad input must not cost it anything."""
    folder = tmp_path_factory.mktemp("proxy")
    sessions = SessionsSpec(str(folder / "sessions.sqlite3"))
    spec = ProxySpec("b", "d", "http://127.0.0.1:9", sessions=sessions)
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
        ({"data": 5}, "data"),
        ({"data": None}, "data"),
        ({"data": {"inputs": "x"}}, "data.inputs"),
        ({"data": {"inputs": ["x", {"mode": "chat"}]}}, "data.inputs[1].message"),
        ({"data": {}}, "data.message"),
        ({"data": {"message": 5}}, "data.message"),
        ({"data": {"message": "x", "mode": "tokens"}}, "data.mode"),
        ({"data": {"message": "x", "inputs": []}}, "data.message"),
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


def test_a_base_model_continues_a_completion(proxy: TierProcess, upstream: SmallUpstream) -> None:
    upstream.has_chat_template = False
    greedy = {"do_sample": False, "max_new_tokens": 9}
    answer = infer(proxy, mode="completions", message="Once", generation_config=greedy)
    assert answer.json() == {"data": {"generated": "0 messages: Once", "usage": USAGE}}
    assert upstream.requests[-1] == {
        "model": DEPLOYMENT,
        "prompt": "Once",
        "max_tokens": 9,
        "temperature": 0,
    }
    refused = infer(proxy, mode="completions", message="Once", system_message="mine")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "data.system_message"
    chat = infer(proxy, mode="chat", message="Once")
    assert (chat.status_code, chat.json()["error"]["code"]) == (400, "no_chat_template")


def test_a_text_without_a_length_is_continued_as_far_as_there_is_room(
    spec: ProxySpec, upstream: SmallUpstream, tmp_path: Path
) -> None:
    upstream.has_chat_template = False
    spec = dataclasses.replace(spec, generation_config={})
    with TierProcess("proxy_block", spec, tmp_path) as proxy:
        infer(proxy, mode="completions", message="short")
        assert upstream.requests[-1]["max_tokens"] == 512
        assert infer(proxy, mode="completions", message="long").status_code == 200
        assert "max_tokens" not in upstream.requests[-1]


def test_the_block_s_template_arguments_are_defaults(
    spec: ProxySpec, upstream: SmallUpstream, tmp_path: Path
) -> None:
    spec = dataclasses.replace(spec, chat_template_kwargs={"enable_thinking": False, "a": 1})
    question = {"model": "block-1", "messages": [{"role": "user", "content": "x"}]}
    with TierProcess("proxy_block", spec, tmp_path) as proxy:
        infer(proxy, mode="chat", message="x")
        infer(proxy, mode="completions", message="x")
        httpx.post(f"{proxy.url}/v1/chat/completions", json=question)
        own = {"chat_template_kwargs": {"enable_thinking": True, "b": 2}}
        httpx.post(f"{proxy.url}/v1/chat/completions", json=question | own)
        httpx.post(f"{proxy.url}/v1/completions", json={"model": "block-1", "prompt": "x"})
    found = [request.get("chat_template_kwargs") for request in upstream.requests]
    theirs = {"enable_thinking": False, "a": 1}
    assert found == [theirs, theirs, theirs, {"enable_thinking": True, "a": 1, "b": 2}, None]
