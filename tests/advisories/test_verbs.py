"""Administration without authentication: whoever reaches a port changes what others get."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from contract.signed_request import SCHEME
from contract.specs import BlockSpec, InferenceServerSpec, ProxySpec, SessionsSpec
from inference_server.api import build_app as build_server
from inference_server.keys.api_keys import ApiKeys
from proxy_block.api import build_app as build_block
from proxy_block.stores.sqlite import SqliteStore
from runner.master.text.model_text import ModelText
from runner.stage.process.health import health_app
from tests.runner.master.scripted_engine import ScriptedEngine
from tests.runner.master.serving import master_app

READING = {"GET", "HEAD", "OPTIONS"}
# What generates, written out once more: a verb that changes something does not get in here by a
# slip of a list.
GENERATING = {
    "master": {"/generate", "/v1/completions", "/v1/chat/completions", "/v1/chat/"},
    "stage": set(),
    "proxy block": {"/infer", "/v1/completions", "/v1/chat/completions", "/v1/chat/"},
    # Behind API keys, where there are some.
    "inference server": set(),
}
OTHER_PROOFS = ["", "Bearer", "Bearer x", "Basic bWU6bWU=", "Bearer None", "Bearer \xfc"]


@dataclass(frozen=True)
class Verb:
    tier: str
    method: str
    path: str


@pytest.fixture
def tiers(engine: ScriptedEngine, demo_text: ModelText, tmp_path: Path) -> dict[str, Starlette]:
    """Each application as a pod starts it: on every address, with its keys."""
    sessions = SessionsSpec(str(tmp_path / "sessions.sqlite3"))
    block = ProxySpec("block", "test", "http://127.0.0.1:9", sessions=sessions)
    keys = tmp_path / "keys"
    keys.write_text('[{"name": "me", "sha256": "' + "0" * 64 + '"}]')
    server = InferenceServerSpec("test", (BlockSpec("block", "http://127.0.0.1:9"),))
    return {
        "master": master_app(
            engine, demo_text, management_key=lambda: "the-key-of-the-stack", bind_address=""
        ),
        "stage": health_app(lambda: "", lambda: "", CollectorRegistry()),
        "proxy block": build_block(
            block, {}, SqliteStore(sessions), lambda: "the-key-of-the-stack"
        ),
        "inference server": build_server(server, ApiKeys(keys)),
    }


def verbs(tiers: dict[str, Starlette]) -> Iterator[Verb]:
    """All that do not only read and are not known to generate."""
    for tier, app in tiers.items():
        for route in app.routes:
            assert isinstance(route, Route), f"{tier}: what is behind {route} is not looked at here"
            assert route.methods, f"{tier}: {route.path} takes every method"
            for method in route.methods - READING:
                if route.path not in GENERATING[tier]:
                    yield Verb(tier, method, re.sub(r"{\w+(:\w+)?}", "x", route.path))


def test_every_verb_that_changes_something_is_refused_without_proof(
    tiers: dict[str, Starlette],
) -> None:
    """Endpoints that load, unload, reset or configure are open beside those that generate, on the
    port that everybody is given. Whatever route is added is judged here."""
    found = list(verbs(tiers))
    assert {(item.tier, item.path) for item in found} >= {
        ("master", "/set_config"),
        ("proxy block", "/management"),
        ("inference server", "/v1/infer"),
    }
    for verb in found:
        client = TestClient(tiers[verb.tier])
        for proof in OTHER_PROOFS:
            headers = {"Authorization": proof.encode("latin-1")} if proof else {}
            answer = client.request(verb.method, verb.path, json={}, headers=headers)  # type: ignore[arg-type]
            assert answer.status_code == 401, (verb, proof, answer.text)
            assert answer.headers["www-authenticate"] in ("Bearer", SCHEME)
            assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("path", ["/set_config", "/set_config?key=the-key-of-the-stack"])
def test_no_other_way_of_asking_is_taken_for_the_verb(
    tiers: dict[str, Starlette], path: str
) -> None:
    """The same past the check: another method, or a header or query that names one or is a key."""
    client = TestClient(tiers["master"])
    before = client.get("/set_config").json()
    change = {"temperature": 0.123}
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "POST", "post", "OPTIONS"):
        headers = {"X-HTTP-Method-Override": "POST", "X-Forwarded-For": "127.0.0.1"}
        headers |= {"Host": "127.0.0.1", "X-Original-URL": "/set_config"}
        client.request(method, path, json=change, headers=headers)
    for other in ("//set_config", "/set_config/", "/v1/../set_config", "/SET_CONFIG"):
        client.post(other, json=change)
    assert client.get("/set_config").json() == before
