"""What bad requests are answered with: status, type, code and param, not the words.

Clients act on these: they retry, show the field, or give up.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from runner.errors import (
    DeadlineExceeded,
    EngineFull,
    InvalidField,
    ModelChanged,
    NotServing,
    PromptTooLong,
    RequestEndsTheGroup,
    RunnerError,
)
from tests.goldens.conftest import BLOCK, KEY, MAX_BODY_BYTES, WatchedEngine
from tests.goldens.error_answer import outcome
from tests.goldens.recorded_file import check_recorded

# What is wrong with a body whatever it asks for.
BROKEN_BODIES: dict[str, dict[str, Any]] = {
    "no body": {},
    "not JSON": {"content": b"{"},
    "not UTF-8": {"content": b'{"a": "\xff"}'},
    "a lone surrogate": {"content": b'{"model": "\\ud800"}'},
    "a list": {"content": b"[]"},
    "NaN": {"content": b'{"a": NaN}'},
    "a number too large": {"content": b'{"a": 1e999}'},
    "nested too deeply": {"content": b'{"a": ' + b"[" * 20_000},
    "a file": {"content": b"{}", "headers": {"Content-Type": "multipart/form-data"}},
    "an image": {"content": b"{}", "headers": {"Content-Type": "image/png"}},
}
TOO_LARGE = {"content": b'{"a": "' + b"x" * (MAX_BODY_BYTES + 100_000) + b'"}'}
USER = {"role": "user", "content": "x"}
CHAT: dict[str, Any] = {"model": "test/model", "messages": [USER]}
COMPLETION: dict[str, Any] = {"model": "test/model", "prompt": "x"}


def ask(client: httpx.Client, path: str, **request: Any) -> Any:
    return outcome(client.post(path, **request))


def broken(client: httpx.Client, path: str) -> dict[str, Any]:
    return {f"{path}, {name}": ask(client, path, **body) for name, body in BROKEN_BODIES.items()}


def changed(client: httpx.Client, path: str, body: dict[str, Any], changes: Any) -> dict[str, Any]:
    """By what each change puts into the body that is accepted without it."""
    assert ask(client, path, json=body) == "accepted"
    return {
        f"{path}, {json.dumps(change)[:120]}": ask(client, path, json=body | change)
        for change in changes
    }


def methods(client: httpx.Client, paths: list[str]) -> dict[str, Any]:
    return {f"DELETE {path}": outcome(client.delete(path)) for path in paths}


def test_the_master(master: str) -> None:
    chat_changes: list[dict[str, Any]] = [
        {"model": "other"},
        {"model": None},
        {"model": 5},
        {"messages": None},
        {"messages": []},
        {"messages": "x"},
        {"messages": ["x"]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"content": "x"}]},
        {"messages": [{"role": "", "content": "x"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        {"messages": [{"role": "user", "content": "x", "extra": 1}]},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]},
        {"messages": [{"role": "user", "content": "x", "name": 5}]},
        {"messages": [{"role": "developer", "content": "x"}, USER]},
        {"messages": [USER] * 600},
        {"messages": [{"role": "user", "content": "word " * 1000}]},
        {"messages": [{"role": "user", "content": "x" * 100_000}]},
        {"tools": []},
        {"tools": [1]},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"functions": [1]},
        {"function_call": "auto"},
        {"parallel_tool_calls": True},
        {"store": False},
        {"store": True},
        {"metadata": {}},
        {"metadata": {"a": "b"}},
        {"prompt_cache_retention": "24h"},
        {"service_tier": "auto"},
        {"service_tier": "flex"},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}},
        {"modalities": ["text"]},
        {"modalities": ["audio"]},
        {"audio": {}},
        {"prediction": {}},
        {"reasoning_effort": "low"},
        {"verbosity": "low"},
        {"web_search_options": {}},
        {"user": 5, "safety_identifier": 5, "prompt_cache_key": 5},
        {"stream": "yes"},
        {"stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        {"stream": True, "stream_options": {"other": True}},
        {f"unknown{number}": 1 for number in range(1100)},
    ]
    prompts: list[Any] = [
        None, "", [], ["a", 5], [-1], [10**9], [True], {"a": 1}, ["a"] * 64, ["a"] * 65, ["", "a"],
        [[1], []], "word " * 2000, 5,
    ]  # fmt: skip
    completion_changes = [{"prompt": prompt} for prompt in prompts]
    completion_changes += [
        {"suffix": "x"},
        {"best_of": 1},
        {"best_of": 2},
        {"model": "other"},
        {"messages": [USER]},
        {"user": 5},
        {"safety_identifier": "x"},
    ]
    generate_changes: list[dict[str, Any]] = [
        {"prompt": None},
        {"prompt": ""},
        {"prompt": ["a"]},
        {"model": "test/model"},
        {"enable_streaming": 1},
        {"stream": True},
    ]
    with httpx.Client(base_url=master, timeout=30) as client:
        found = changed(client, "/v1/chat/completions", CHAT, chat_changes)
        found |= changed(client, "/v1/chat/", CHAT, chat_changes[:1])
        found |= changed(client, "/v1/completions", COMPLETION, completion_changes)
        found |= changed(client, "/generate", {"prompt": "x"}, generate_changes)
        for path in ("/v1/chat/completions", "/v1/completions", "/generate", "/set_config"):
            found |= broken(client, path)
        found |= methods(client, ["/generate", "/set_config", "/v1/models", "/livez", "/topology"])
        for path in ("/nowhere", "/v1/models/other", "/v1/models/test/model", "/generate"):
            found[f"GET {path}"] = outcome(client.get(path))
    check_recorded("errors-master", found)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/generate"])
def test_failures_of_the_engine(path: str, master: str, engine: WatchedEngine) -> None:
    body = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETION}.get(path, {"prompt": "x"})
    failures = (
        EngineFull("full", 7),
        NotServing("draining"),
        DeadlineExceeded("late"),
        InvalidField("top_k", 5, "is not"),
        PromptTooLong("prompt", 5, "is too long"),
        ModelChanged("carry.beginning.model_commit", "a", "is not b"),
        RequestEndsTheGroup("it was lost each time"),
        RunnerError("something"),
    )
    found = {}
    try:
        for failure in failures:
            engine.failure = failure
            name = type(failure).__name__
            found[name] = outcome(httpx.post(master + path, json=body, timeout=30))
    finally:
        engine.failure = None
    check_recorded(f"errors-engine{path.replace('/', '-')}", found)


def question(data: Any, number: int, **envelope: Any) -> dict[str, Any]:
    return {"session_id": f"errors-{number}", "seq_no": 1, "data": data} | envelope


INPUTS: list[Any] = [
    None,
    "",
    5,
    [],
    {},
    "text",
    '{"message": "x"}',
    '{"message": ""}',
    {"message": ""},
    {"message": 5},
    {"message": None},
    {"message": {}},
    {"message": {"reply": "x"}},
    {"message": {"reply": "x", "usage": None}},
    {"message": {"reply": "x", "other": 1}},
    {"message": {"reply": "x", "generated": "y"}},
    {"message": "x", "reply": "y"},
    {"reply": "x"},
    {"generated": ""},
    {"generated": "x", "mode": "chat"},
    {"message": "x", "mode": "other"},
    {"message": "x", "mode": 5},
    {"message": "x", "system_message": 5},
    {"message": "x", "system_message": ""},
    {"message": "x", "generation_config": 5},
    {"message": "x", "generation_config": {"no_such_field": 1}},
    {"message": "x", "other": 1},
    {"inputs": []},
    {"inputs": 5},
    {"inputs": ["a"], "mode": "chat"},
    {"inputs": ["a"] * 64},
    {"inputs": ["a"] * 65},
    {"inputs": [["a"] * 33, ["a"] * 32]},
    {"inputs": ["a", {"message": ""}]},
    [["a"], [5]],
    [[["too deep"]]],
    {"message": "refuse"},
    {"message": "die"},
]
ENVELOPES: list[dict[str, Any]] = [
    {"session_id": ""},
    {"session_id": None},
    {"session_id": 5},
    {"session_id": "x" * 256},
    {"session_id": "x" * 257},
    {"session_id": "x" * 1100},
    {"session_id": "x" * 1101},
    {"seq_no": -1},
    {"seq_no": 0},
    {"seq_no": 1.0},
    {"seq_no": 1.5},
    {"seq_no": "1"},
    {"seq_no": True},
    {"seq_no": None},
    {"seq_no": 2**63 - 1},
    {"seq_no": 2**63},
    {"other": 1},
]


def short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:60]}... of {len(text)} characters"


def blocks_answers(
    client: httpx.Client, path: str, first: int, more: dict[str, Any]
) -> dict[str, Any]:
    """Inputs and envelopes, each in a session of its own unless it names one."""
    found = {}
    for number, data in enumerate(INPUTS):
        body = question(data, first + number) | more
        found[f"{path}, data {short(data)}"] = ask(client, path, json=body)
    for number, envelope in enumerate(ENVELOPES):
        body = question("x", first + 1000 + number) | more | envelope
        found[f"{path}, {short(envelope)}"] = ask(client, path, json=body)
    for name in ("session_id", "seq_no", "data"):
        body = question("x", first + 2000) | more
        del body[name]
        found[f"{path}, without {name}"] = ask(client, path, json=body)
    found |= broken(client, path)
    found[f"{path}, too large"] = ask(client, path, **TOO_LARGE)
    return found


def test_the_proxy_block(proxy: str) -> None:
    management: list[dict[str, Any]] = [
        {},
        {"action": "reset"},
        {"action": "reset", "data": None},
        {"action": "reset", "data": {}},
        {"action": "reset", "data": {"session_id": "s"}},
        {"action": "reset", "data": {"session_id": ""}},
        {"action": "reset", "data": {"session_id": 5}},
        {"action": "reset", "data": {"other": 5}},
        {"action": "reset", "data": []},
        {"action": "other"},
        {"action": 5},
        {"action": "reset", "other": 1},
    ]
    with httpx.Client(base_url=proxy, timeout=30) as client:
        found = blocks_answers(client, "/infer", 0, {})
        body = question("x", 5000, seq_no=5)
        found["/infer, seq_no 5"] = ask(client, "/infer", json=body)
        found["/infer, seq_no 5 again"] = ask(client, "/infer", json=body)
        found["/infer, seq_no 4 after 5"] = ask(client, "/infer", json=body | {"seq_no": 4})
        for document in management:
            name = f"/management, {short(document)}"
            found[name] = ask(client, "/management", json=document)
        for path in ("/management", "/v1/chat/completions"):
            found |= broken(client, path)
            found[f"{path}, too large"] = ask(client, path, **TOO_LARGE)
        refused = {"model": BLOCK, "messages": [{"role": "user", "content": "refuse"}]}
        found["chat, refused upstream"] = ask(client, "/v1/chat/completions", json=refused)
        found |= methods(client, ["/infer", "/management", "/v1/models", "/component.json"])
        found["GET /nowhere"] = outcome(client.get("/nowhere"))
        found["GET /infer"] = outcome(client.get("/infer"))
    check_recorded("errors-proxy-block", found)


FILES: list[dict[str, Any]] = [{"files": []}, {"file": "x"}]
GRAPHS: list[Any] = [
    {},
    None,
    5,
    [],
    {BLOCK: []},
    {BLOCK: ["block-2"]},
    {BLOCK: 5},
    {BLOCK: [5]},
    {BLOCK: ["block-2", "block-2"]},
    {BLOCK: ["nobody"]},
    {BLOCK: [BLOCK]},
    {BLOCK: ["block-2"], "block-2": [BLOCK]},
    {"block-2": []},
    {BLOCK: [], "block-2": []},
    {"is_graph": True, "graph": {BLOCK: []}},
    {"is_graph": False, "graph": {BLOCK: []}},
    {"is_graph": "yes", "graph": {}},
    {"is_graph": True, "graph": 5},
    {"is_graph": True, "graph": {}, "other": 1},
    {f"n{number}": [] for number in range(65)},
]


def aios_query(query: Any) -> dict[str, Any]:
    inner = {"parameters": {"filterRule": {"filter": query}}}
    return {"body": {"values": {"rankingPolicyRule": {"values": inner}}}}


CONDITION = {"variable": "labels.team", "operator": "==", "value": "a"}
QUERIES: list[Any] = [
    5,
    {"tags": ["chat"]},
    {"tags": ["no such tag"]},
    {"tags": "chat"},
    {"tags": [""]},
    {"tags": ["x"] * 65},
    {"labels": {"team": "nobody"}},
    {"labels": []},
    {"component": ""},
    {"component": 5},
    {"other": 1},
    {"header": {}},
    {"body": 5},
    {"body": {"values": {}}},
    aios_query({}),
    aios_query(5),
    aios_query({"blockMetricsQuery": {}}),
    aios_query({"other": {}}),
    aios_query({"blockQuery": 5}),
    aios_query({"blockQuery": {"variable": "x"}}),
    aios_query({"blockQuery": CONDITION | {"operator": "~"}}),
    aios_query({"blockQuery": CONDITION | {"operator": "IN"}}),
    aios_query({"blockQuery": CONDITION | {"operator": "LIKE", "value": 5}}),
    aios_query({"blockQuery": CONDITION | {"value": "nobody"}}),
    aios_query({"blockQuery": {"logicalOperator": "XOR", "conditions": [CONDITION]}}),
    aios_query({"blockQuery": {"logicalOperator": "AND", "conditions": []}}),
    aios_query({"blockQuery": {"conditions": [CONDITION] * 65}}),
    aios_query({"blockQuery": {"conditions": [5]}}),
    aios_query({"blockQuery": {"conditions": [CONDITION], "other": 1}}),
]


def test_the_inference_server(server: str) -> None:
    path = "/v1/infer"
    models: list[Any] = ["", None, 5, "nobody", "x" * 256, "x" * 257]
    with httpx.Client(base_url=server, timeout=30) as client:
        found = blocks_answers(client, path, 10_000, {"model": BLOCK})
        for number, graph in enumerate(GRAPHS):
            body = question({"message": "x"}, 20_000 + number, model=BLOCK, graph=graph)
            found[f"{path}, graph {short(graph)}"] = ask(client, path, json=body)
        for number, query in enumerate(QUERIES):
            body = question({"message": "x"}, 30_000 + number, selection_query=query)
            found[f"{path}, selection_query {short(query)} {number}"] = ask(client, path, json=body)
        for number, model in enumerate(models):
            body = question({"message": "x"}, 40_000 + number, model=model)
            found[f"{path}, model {short(model)}"] = ask(client, path, json=body)
            chat = {"model": model, "messages": [USER]}
            name = f"chat, model {short(model)}"
            found[name] = ask(client, "/v1/chat/completions", json=chat)
        for number, files in enumerate(FILES):
            body = question({"message": "x"} | files, 50_000 + number, model=BLOCK)
            found[f"{path}, data with {short(files)}"] = ask(client, path, json=body)
        body = question({"message": "refuse"}, 60_000, model=BLOCK, graph={BLOCK: ["block-2"]})
        found[f"{path}, refused in a graph"] = ask(client, path, json=body)
        for other in ("/v1/chat/completions", "/v1/completions"):
            found |= broken(client, other)
            found[f"{other}, too large"] = ask(client, other, **TOO_LARGE)
            found[f"{other}, without a model"] = ask(client, other, json={"prompt": "x"})
        found |= methods(client, [path, "/v1/blocks", "/v1/models", "/livez", "/logs/request/x"])
        gets = ("/nowhere", path, "/v1/models/nobody", f"/v1/models/{BLOCK}", "/v1/events",
                "/v1/events?model=nobody", "/logs/other/x", "/logs/request/x", "/page/nothing.js",
                "/page/../api.py")  # fmt: skip
        for other in gets:
            found[f"GET {other}"] = outcome(client.get(other))
    check_recorded("errors-inference-server", found)


def test_api_keys(server_with_keys: str) -> None:
    body = {"model": BLOCK, "prompt": "x"}
    keys = {
        "none": {},
        "another scheme": {"Authorization": f"Basic {KEY}"},
        "empty": {"Authorization": "Bearer"},
        "unknown": {"Authorization": "Bearer nobody"},
    }
    gets = ("/", "/livez", "/readyz", "/metrics", "/openapi.json", "/v1/models", "/v1/blocks",
            "/v1/events?model=x", "/logs/request/x", "/nowhere", "/page/main.js")  # fmt: skip
    found = {}
    with httpx.Client(base_url=server_with_keys, timeout=30) as client:
        for name, headers in keys.items():
            found[f"key {name}"] = ask(client, "/v1/completions", json=body, headers=headers)
        for path in gets:
            found[f"GET {path} without a key"] = outcome(client.get(path))
        known = {"Authorization": f"Bearer {KEY}"}
        found["GET a log where none is kept"] = outcome(
            client.get("/logs/request/x", headers=known)
        )
        found["within its tokens"] = ask(client, "/v1/completions", json=body, headers=known)
        beyond = ask(client, "/v1/completions", json=body, headers=known)
        # How long it says to wait is a matter of the clock.
        assert int(beyond.pop("retry-after")) > 0
        found["beyond its tokens"] = beyond
    check_recorded("errors-api-keys", found)
