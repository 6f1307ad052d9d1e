from __future__ import annotations

from typing import Any

import httpx
import pytest

from runner.master.text.model_text import ModelText
from tests.runner.master.scripted_engine import ScriptedEngine
from tests.runner.master.serving import served_engine


@pytest.mark.parametrize(
    ("body", "temperature"),
    [
        ({}, 0),
        ({"do_sample": True}, 1.0),
        ({"temperature": 0.7}, 0.7),
        ({"temperature": 0.7, "do_sample": False}, 0),
        ({"top_k": 5}, 1.0),
    ],
)
def test_when_it_samples(
    url: str, engine: ScriptedEngine, body: dict[str, Any], temperature: float
) -> None:
    assert httpx.post(f"{url}/generate", json={"prompt": "x", **body}).status_code == 200
    assert engine.requests[0].sampling.temperature == temperature


def test_defaults_come_from_request_then_configuration_then_model(
    engine: ScriptedEngine, demo_text: ModelText
) -> None:
    model_defaults = {"do_sample": True, "temperature": 0.6, "top_k": 40}
    with served_engine(engine, demo_text, defaults=model_defaults) as url:
        changed = httpx.post(
            f"{url}/set_config", json={"temperature": 0.3, "max_new_tokens": 7, "stop": "café"}
        ).json()
        assert (changed["temperature"], changed["top_k"], changed["do_sample"]) == (0.3, 40, True)
        assert httpx.get(f"{url}/set_config").json() == changed
        httpx.post(f"{url}/generate", json={"prompt": "x"})
        httpx.post(f"{url}/generate", json={"prompt": "x", "temperature": 0.9})
        undone = httpx.post(f"{url}/set_config", json={"temperature": None}).json()
    assert [request.sampling.temperature for request in engine.requests] == [0.3, 0.9]
    assert [request.sampling.top_k for request in engine.requests] == [40, 40]
    assert [request.max_new_tokens for request in engine.requests] == [7, 7]
    assert (undone["temperature"], undone["max_new_tokens"]) == (0.6, 7)


def test_a_greedy_configuration_holds_for_the_openai_endpoints_too(
    url: str, engine: ScriptedEngine
) -> None:
    httpx.post(f"{url}/set_config", json={"do_sample": False})
    body = {"model": "test/model", "prompt": "x"}
    httpx.post(f"{url}/v1/completions", json=body)
    httpx.post(f"{url}/v1/completions", json={**body, "temperature": 0.5})
    assert [request.sampling.temperature for request in engine.requests] == [0, 0.5]


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"model": "other/model"}, "model"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": "many"}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"stop": [1]}, "stop"),
        ({"top_p": 0.5, "nonsense": 1}, "nonsense"),
    ],
)
def test_a_wrong_configuration_changes_nothing(
    url: str, document: dict[str, Any], field: str
) -> None:
    before = httpx.get(f"{url}/set_config").json()
    response = httpx.post(f"{url}/set_config", json=document)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert httpx.get(f"{url}/set_config").json() == before


def test_beyond_one_machine_a_configuration_needs_the_management_key(
    engine: ScriptedEngine, demo_text: ModelText
) -> None:
    with served_engine(engine, demo_text, bind_address="", management_key=lambda: "the-key") as url:
        change = {"temperature": 0.3}
        for headers in ({}, {"Authorization": "Bearer another-key"}):
            refused = httpx.post(f"{url}/set_config", json=change, headers=headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_management_key"
            assert refused.headers["www-authenticate"] == "Bearer"
        assert httpx.get(f"{url}/set_config").json()["temperature"] != 0.3
        assert httpx.post(f"{url}/generate", json={"prompt": "x"}).status_code == 200
        proof = {"Authorization": "Bearer the-key"}
        assert httpx.post(f"{url}/set_config", json=change, headers=proof).status_code == 200
        assert httpx.get(f"{url}/set_config").json()["temperature"] == 0.3
