from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from contract.specs import LARGEST_BODY_BYTES
from runner.master.api.bodies import ConfigurationBody, GenerateBody
from runner.master.api.openai_bodies import ChatBody, CompletionBody
from runner.master.text.model_text import ModelText
from tests.lanes import examples
from tests.runner.master.scripted_engine import ScriptedEngine
from tests.runner.master.serving import DEPLOYMENT, MODEL, group_spec, served_engine
from tests.waiting import wait_for
from tests.web.leaving_client import ask_and_leave

MESSAGES: Any = [{"role": "user", "content": "Hi"}]
GENERATING = [
    ("/generate", {"prompt": "x", "max_new_tokens": 500}),
    ("/generate", {"prompt": "x", "max_new_tokens": 500, "enable_streaming": True}),
    ("/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 500}),
    ("/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 500, "n": 3}),
    ("/v1/chat/completions", {"model": MODEL, "messages": MESSAGES, "max_tokens": 400}),
    (
        "/v1/chat/completions",
        {"model": MODEL, "messages": MESSAGES, "max_tokens": 400, "stream": True, "n": 2},
    ),
]


def test_the_models_are_the_model_and_its_alias(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, DEPLOYMENT]
    assert client.models.retrieve(DEPLOYMENT).id == DEPLOYMENT


def test_live_always_ready_only_when_served(url: str, engine: ScriptedEngine) -> None:
    assert httpx.get(f"{url}/livez").status_code == 200
    assert httpx.get(f"{url}/readyz").status_code == 200
    engine.ready, engine.state, engine.reason = False, "starting", "rank 1 has been lost"
    assert httpx.get(f"{url}/livez").status_code == 200
    response = httpx.get(f"{url}/readyz")
    assert response.status_code == 503
    assert response.json() == {
        "ready": False,
        "state": "starting",
        "reason": "rank 1 has been lost",
    }


def test_a_master_without_a_spec_is_ready_for_its_pod_only(
    url: str, engine: ScriptedEngine
) -> None:
    engine.ready = False
    assert httpx.get(f"{url}/readyz?self").status_code == 503  # what it serves is not ready
    vars(engine)["in_force"] = None  # as before a first spec
    assert httpx.get(f"{url}/readyz?self").status_code == 200
    assert httpx.get(f"{url}/readyz").status_code == 503


def test_topology_names_the_deployment(url: str) -> None:
    document = httpx.get(f"{url}/topology").json()
    assert document["deployment_name"] == DEPLOYMENT
    assert document["epoch"] == 1


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b'{"prompt": "x", "temperature": NaN}', {}, 400),
        (b'{"prompt": "x", "temperature": 1e999}', {}, 400),
        (b"[1]", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b'{"prompt": "' + b"x" * LARGEST_BODY_BYTES + b'"}', {}, 413),
        (b"x", {"content-type": "image/png"}, 415),
    ],
)
def test_bodies_that_are_no_request(
    url: str, content: bytes, headers: dict[str, str], status: int
) -> None:
    response = httpx.post(f"{url}/generate", content=content, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["message"]


def test_unknown_paths_and_methods_have_the_same_error_body(url: str) -> None:
    assert httpx.get(f"{url}/nothing").json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{url}/generate").status_code == 405


@pytest.mark.parametrize(("path", "body"), GENERATING)
def test_a_client_that_leaves_frees_its_place(
    url: str, engine: ScriptedEngine, path: str, body: dict[str, Any]
) -> None:
    engine.delay_s = 0.5  # it would be minutes before it ended by itself
    engine.script = lambda _request: [5] * 400
    ask_and_leave(url + path, body, lambda: engine.open == body.get("n", 1))
    wait_for(lambda: engine.open == 0)


def test_a_long_prompt_does_not_stop_the_others(
    engine: ScriptedEngine, demo_text: ModelText
) -> None:
    engine.max_model_len = 10_000_000
    with served_engine(engine, demo_text) as url, httpx.Client() as client:
        body = {"prompt": "word and another " * 200_000, "max_new_tokens": 5}
        sender = threading.Thread(
            target=lambda: httpx.post(f"{url}/generate", json=body, timeout=60)
        )
        sender.start()
        answered = 0
        while sender.is_alive():
            assert client.get(f"{url}/livez").status_code == 200
            answered += 1
        sender.join()
    assert len(engine.requests) == 1
    # One before its tokens are made, one after: others only meanwhile.
    assert answered > 10


def test_a_text_longer_than_any_context_is_refused_before_it_is_tokenized(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ModelText, "_encode")
    long = "x" * 10_000_000
    messages = [{"role": "user", "content": long}]
    for path, body in (
        ("/generate", {"prompt": long}),
        ("/v1/completions", {"model": MODEL, "prompt": long}),
        ("/v1/chat/completions", {"model": MODEL, "messages": messages}),
    ):
        response = httpx.post(url + path, json=body)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert "10000000 characters" in error["message"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": [1] * 16_000}, "messages[0]"),
        ({"messages": [{"role": "user"}] * 16_000}, "messages"),
        ({"messages": MESSAGES, "stop_token_ids": [""] * 250_000}, "stop_token_ids[0]"),
        ({"messages": MESSAGES, "logit_bias": dict.fromkeys(map(str, range(99_999)), 1)}, "logit"),
        ({"messages": MESSAGES, "stream_options": dict.fromkeys(map(str, range(99_999)))}, "str"),
        ({"messages": MESSAGES, **dict.fromkeys(map(str, range(60_000)), 1)}, "body"),
    ],
)
def test_a_body_of_many_faults_is_refused_for_its_first(
    url: str, body: dict[str, Any], field: str
) -> None:
    response = httpx.post(f"{url}/v1/chat/completions", json={"model": MODEL, **body}, timeout=60)
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith(field)
    assert len(message) < 300


def test_a_client_that_does_not_read_is_given_up(
    engine: ScriptedEngine, demo_text: ModelText, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.master.api.answers.LAST_SEND_S", 0.2)
    engine.max_model_len = 10_000_000
    engine.script = lambda _request: [1000] * 1_000_000
    body = {"prompt": "x", "max_new_tokens": 1_000_000, "enable_streaming": True}
    content = json.dumps(body).encode()
    spec = group_spec(request_deadline_s=1.0)
    engine.in_force = replace(engine.in_force, spec=spec)
    with served_engine(engine, demo_text) as url:
        address, began = httpx.URL(url), time.monotonic()
        with socket.create_connection((address.host, address.port)) as connection:
            head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
            connection.sendall(head.encode() + content)
            wait_for(lambda: engine.open == 1)
            wait_for(lambda: engine.open == 0)
            assert time.monotonic() - began >= 1  # the deadline


def test_metrics_count_requests_tokens_and_times(url: str, client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer.usage is not None
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    samples = {
        (sample.name, sample.labels.get("finished_reason")): sample
        for family in families
        for sample in family.samples
    }
    assert all(sample.labels["model_name"] == MODEL for sample in samples.values())
    tokens = answer.usage.completion_tokens
    expected = {
        ("llm_prompts_total", None): 1,
        ("llm_prompt_tokens_total", None): answer.usage.prompt_tokens,
        ("llm_time_to_first_token_seconds_count", None): 1,
        ("llm_inference_duration_seconds_count", None): 1,
        ("llm_time_per_output_token_seconds_count", None): 1,
        ("llm_inference_errors_total", None): 0,
        ("llm_tokens_generated_total", None): tokens,
        ("vllm:prompt_tokens_total", None): answer.usage.prompt_tokens,
        ("vllm:generation_tokens_total", None): tokens,
        ("vllm:request_success_total", "stop"): 1,
        ("vllm:time_to_first_token_seconds_count", None): 1,
        ("vllm:inter_token_latency_seconds_count", None): tokens - 1,
        ("vllm:e2e_request_latency_seconds_count", None): 1,
        ("vllm:num_requests_running", None): 0,
    }
    assert {name: samples[name].value for name in expected} == expected


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
JSON_VALUES = st.recursive(
    SCALARS | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
BODIES = {
    "/generate": (GenerateBody, {"prompt": "x"}),
    "/set_config": (ConfigurationBody, {}),
    "/v1/completions": (CompletionBody, {"model": MODEL, "prompt": "x"}),
    "/v1/chat/completions": (ChatBody, {"model": MODEL, "messages": MESSAGES}),
}


@pytest.mark.parametrize("path", BODIES)
@settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_a_field_holds_the_answer_is_an_answer_or_names_it(
    url: str, path: str, data: st.DataObject
) -> None:
    kind: Any
    kind, required = BODIES[path]
    names = sorted({*kind.model_fields, *kind.unserved} - {"stream", "enable_streaming"})
    name = data.draw(st.sampled_from(names))
    document = {**required, name: data.draw(JSON_VALUES)}
    response = httpx.post(f"{url}{path}", json=document)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert error["param"].split(".")[0].split("[")[0] == name
        assert name in error["message"]
