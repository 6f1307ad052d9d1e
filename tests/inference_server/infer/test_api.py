"""POST /v1/infer over several real blocks: graphs, selection, the request log, deadlines."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from contract.specs import BlockSpec
from tests.inference_server.conftest import Tiers
from tests.waiting import free_ports, wait_for
from tests.web.leaving_client import ask_and_leave
from tests.web.tier_process import TierProcess

BLOCKS = ("first", "left", "right", "last")
DIAMOND = {"first": ["left", "right"], "left": ["last"], "right": ["last"], "last": []}


@pytest.fixture(scope="module")
def server(tiers: Tiers) -> TierProcess:
    rows = [BlockSpec("dead", f"http://127.0.0.1:{free_ports(1)[0]}", "model.dead:1-x")]
    for name in BLOCKS:
        labels = {"place": name, "language": "en"}
        proxy = tiers.proxy(name, labels=labels)
        rows.append(BlockSpec(name, proxy.url, "model.pytorch-runner:1.0.0-stable", labels))
    log = str(tiers.folder / "requests.sqlite3")
    return tiers.server(*rows, request_log_path=log, log_texts=True, patience_s=1)


def infer(
    server: TierProcess, headers: dict[str, str] | None = None, **change: Any
) -> httpx.Response:
    body = {"model": "first", "session_id": "s", "seq_no": 1, "data": {"message": "x"}} | change
    return httpx.post(f"{server.url}/v1/infer", json=body, headers=headers, timeout=30)


def rows(server: TierProcess, kind: str, value: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{server.url}/logs/{kind}/{value}").json()["data"]
    return found


def test_a_chain_passes_what_a_block_put_out_to_the_next(server: TierProcess, tiers: Tiers) -> None:
    answer = infer(server, session_id="chain", graph={"first": ["last"]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "first"
    reply = answer.json()["data"]["reply"]
    assert reply == "1 messages: 1 messages: x"
    assert tiers.upstream.requests[-1]["messages"][-1]["content"] == "1 messages: x"


def test_a_diamond_joins_its_branches(server: TierProcess) -> None:
    graph = {"is_graph": True, "graph": DIAMOND}
    answer = infer(server, session_id="diamond", graph=graph, headers={"X-Request-Id": "d-1"})
    assert answer.status_code == 200, answer.text
    logged = rows(server, "request", "d-1")
    assert [row["block_id"] for row in logged][0::3] == ["first", "last"]
    assert {row["block_id"] for row in logged[1:3]} == {"left", "right"}
    assert all(row["outcome"] == "ok" and row["completion_tokens"] for row in logged)
    assert all(row["session_id"] == "diamond" and row["seq_no"] == 1 for row in logged)


def test_tokens_of_batches_in_batches_are_counted(server: TierProcess) -> None:
    data = {"inputs": [["a", "b"], "c"]}
    answer = infer(server, session_id="batch", data=data, headers={"X-Request-Id": "b-1"})
    assert [len(answer.json()["data"]), len(answer.json()["data"][0])] == [2, 2]
    [row] = rows(server, "request", "b-1")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (21, 9)


def test_several_sinks_answer_by_name(server: TierProcess) -> None:
    answer = infer(server, session_id="sinks", graph={"first": ["left", "right"]})
    outputs = answer.json()["data"]["outputs"]
    assert {name: data["reply"] for name, data in outputs.items()} == {
        "left": "1 messages: 1 messages: x",
        "right": "1 messages: 1 messages: x",
    }


def test_a_node_that_fails_is_named_and_what_ran_is_logged(server: TierProcess) -> None:
    answer = infer(
        server, session_id="f", graph={"first": ["dead"]}, headers={"X-Request-Id": "f-1"}
    )
    error = answer.json()["error"]
    assert answer.status_code == 503
    assert error["message"].startswith("graph: block dead failed: ")
    assert (error["param"], error["code"]) == ("graph.dead", "upstream_unreachable")
    assert error["request_id"] == "f-1"
    logged = {row["block_id"]: row for row in rows(server, "request", "f-1")}
    assert logged["first"]["outcome"] == "ok"
    assert "1 messages: x" in logged["first"]["answer"]
    assert (logged["dead"]["outcome"], logged["dead"]["status"]) == ("failed", 503)


def test_a_refusal_inside_of_a_graph_says_where(server: TierProcess) -> None:
    answer = infer(server, graph={"first": ["left"]}, data={"message": "x", "mode": "tokens"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "graph.first.data.mode")


@pytest.mark.parametrize(
    "graph", [{"first": ["first"]}, {"first": ["x"]}, {"first": [], "left": []}]
)
def test_a_bad_graph_runs_nothing(server: TierProcess, tiers: Tiers, graph: Any) -> None:
    before = len(tiers.upstream.requests)
    answer = infer(server, graph=graph)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "graph")
    assert len(tiers.upstream.requests) == before


def test_a_client_that_leaves_ends_every_branch(server: TierProcess, tiers: Tiers) -> None:
    tiers.upstream.left_at.clear()
    body = {"model": "first", "session_id": "leaves", "seq_no": 1, "data": {"message": "hang"}}
    headers = {"X-Request-Id": "left-1"}
    before = len(tiers.upstream.requests)
    arrived = lambda: len(tiers.upstream.requests) > before  # noqa: E731
    ask_and_leave(f"{server.url}/v1/infer", body, arrived, headers)
    wait_for(lambda: tiers.upstream.left_at)
    [row] = wait_for(lambda: rows(server, "request", "left-1"))
    assert row["outcome"] == "cancelled"


def test_selection_by_labels_and_tags(server: TierProcess) -> None:
    answer = infer(server, model="", selection_query={"labels": {"place": "right"}})
    assert answer.json()["model"] == "right"
    condition = {"variable": "labels.place", "operator": "IN", "value": ["left", "nowhere"]}
    query: Any = {"blockQuery": {"logicalOperator": "AND", "conditions": [condition]}}
    for name in reversed(
        ["body", "values", "rankingPolicyRule", "values", "parameters", "filterRule", "filter"]
    ):
        query = {name: query}
    assert infer(server, model="", selection_query=query).json()["model"] == "left"


def test_the_least_loaded_is_taken_and_a_session_stays(server: TierProcess, tiers: Tiers) -> None:
    query = {"labels": {"language": "en"}}
    mine = infer(server, model="", session_id="stays", selection_query=query).json()["model"]
    with httpx.Client() as client:
        hanging = client.build_request(
            "POST",
            f"{server.url}/v1/chat/completions",
            json={
                "model": mine,
                "messages": [{"role": "user", "content": "stream then hang"}],
                "stream": True,
            },
        )
        stream = client.send(hanging, stream=True)
        try:
            others = {
                infer(server, model="", session_id=f"new-{number}", selection_query=query).json()[
                    "model"
                ]
                for number in range(4)
            }
            again = infer(server, model="", session_id="stays", seq_no=2, selection_query=query)
        finally:
            stream.close()
    assert mine not in others
    assert again.json()["model"] == mine


def test_no_match_says_why_for_each_block(server: TierProcess) -> None:
    answer = infer(server, model="", selection_query={"labels": {"place": "nowhere"}})
    message = answer.json()["error"]["message"]
    assert answer.status_code == 404
    assert "left: labels.place == 'nowhere' is false: the block has 'left'" in message
    assert "dead: labels.place == 'nowhere' is false: the block has none" in message


def test_a_named_block_must_match_the_query_too(server: TierProcess) -> None:
    answer = infer(server, selection_query={"labels": {"place": "left"}})
    assert answer.status_code == 404
    assert "first: labels.place == 'left'" in answer.json()["error"]["message"]


def test_only_blocks_that_are_not_ready_match(server: TierProcess) -> None:
    answer = infer(server, model="", selection_query={"component": "model.dead:1-x"})
    assert answer.status_code == 503
    assert "block dead" in answer.json()["error"]["message"]


def test_the_clients_own_deadline_is_kept(server: TierProcess) -> None:
    headers = {"X-Request-Timeout": "0.5", "X-Request-Id": "late-1"}
    began = time.monotonic()
    answer = infer(server, data={"message": "hang"}, headers=headers)
    assert time.monotonic() - began > 0.4
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert "within 0.5 s" in answer.json()["error"]["message"]
    body = {"model": "first", "stream": True}
    body["messages"] = [{"role": "user", "content": "stream then hang"}]
    headers = {"X-Request-Timeout": "0.5", "X-Request-Id": "late-2"}
    httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=30)
    for request_id, status in (("late-1", 504), ("late-2", 200)):
        wait_for(lambda request_id=request_id: rows(server, "request", request_id))
        [row] = rows(server, "request", request_id)
        assert (row["outcome"], row["code"]) == ("failed", "deadline_exceeded")
        assert row["status"] == status


@pytest.mark.parametrize("value", ["", "soon", "0", "-1", "nan", "inf", "1e9"])
def test_a_bad_deadline_is_refused(server: TierProcess, value: str) -> None:
    answer = infer(server, headers={"X-Request-Timeout": value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "X-Request-Timeout")


def test_blocks_are_listed_with_health_and_load(server: TierProcess) -> None:
    found = {block["id"]: block for block in httpx.get(f"{server.url}/v1/blocks").json()["data"]}
    assert list(found) == ["dead", *BLOCKS]
    left = found["left"]
    assert left["component"] == "model.pytorch-runner:1.0.0-stable"
    assert left["labels"] == {"place": "left", "language": "en"}
    assert (left["healthy"], left["load"]) == (True, {"in_flight": 0, "replicas": 1})
    assert not found["dead"]["healthy"]
    assert "does not answer" in found["dead"]["reason"]


def test_logs_of_unknown_ids_and_kinds(server: TierProcess) -> None:
    assert rows(server, "session", "nobody") == []
    answer = httpx.get(f"{server.url}/logs/user/x")
    assert answer.status_code == 404
    assert "request, session, block" in answer.json()["error"]["message"]
