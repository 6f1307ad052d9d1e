"""GET and PUT /group/spec, and requests that wait while the weights are exchanged."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from contract.signature import signing_key
from contract.signed_request import NONCE_BYTES, Verifier, sign
from contract.specs import GroupSpec, render, spec_hash
from runner.master.group.specs import Specs
from runner.master.group.swap import Swap
from runner.master.text.model_text import ModelText
from runner.transport.control import Served
from tests.runner.master.scripted_engine import ScriptedEngine
from tests.runner.master.serving import DEPLOYMENT, MODEL, group_spec, master_app, served

KEY = signing_key(b"a token of at least 16 bytes")
PATH = "/group/spec"
CHAT = {"model": DEPLOYMENT, "messages": [{"role": "user", "content": "Hi"}]}


class PushedEngine(ScriptedEngine):
    """Decides of what is pushed as a group does; the swap goes no further."""

    def __init__(self, engine: ScriptedEngine) -> None:
        super().__init__(engine.script)
        self.specs = Specs(100.0)
        self.specs.in_force = self.in_force

    async def push(self, spec: GroupSpec) -> Swap | None:
        swap = self.specs.push(spec, time.time())
        self.swap, self.in_force = self.specs.swap, self.specs.in_force  # type: ignore[assignment]
        return swap


@pytest.fixture
def pushed(engine: ScriptedEngine) -> PushedEngine:
    return PushedEngine(engine)


@pytest.fixture
def address(pushed: PushedEngine, demo_text: ModelText) -> Iterator[str]:
    app = master_app(pushed, demo_text, verifier=Verifier(KEY, time.time))
    with served(app) as url:
        time.sleep(0.01)  # what was signed before it began is refused
        yield url


def signed(body: bytes, key: bytes = KEY, method: str = "PUT", path: str = PATH) -> dict[str, str]:
    nonce = secrets.token_bytes(NONCE_BYTES)
    return {"Authorization": sign(key, method, path, body, time.time(), nonce)}


def push(url: str, spec: GroupSpec) -> httpx.Response:
    body = render(spec).encode()
    return httpx.put(url + PATH, content=body, headers=signed(body))


def test_what_is_served_and_what_is_pushed(address: str, pushed: PushedEngine) -> None:
    spec = group_spec()
    found = httpx.get(address + PATH).json()
    assert found["swap"] is None
    serving = found["serving"]
    assert (serving["spec_hash"], serving["model_name"]) == (spec_hash(spec), MODEL)
    assert serving["commit"] == "a-commit"
    assert GroupSpec(**{**serving["spec"], "ranks": spec.ranks}) == spec
    same = push(address, spec)
    assert (same.status_code, same.json()) == (
        200,
        {"spec_hash": spec_hash(spec), "phase": "serving"},
    )
    limits = replace(spec, max_concurrent_requests=3)
    assert push(address, limits).json() == {"spec_hash": spec_hash(limits), "phase": "serving"}
    other = replace(spec, model_name="org/other")
    for _ in range(2):  # a Job that was killed pushes again
        answer = push(address, other)
        assert answer.status_code == 202
        assert answer.json() == {"spec_hash": spec_hash(other), "phase": "preparing"}
    refused = push(address, replace(spec, model_name="org/third"))
    assert refused.status_code == 409
    error = refused.json()["error"]
    assert error["code"] == "swap_running"
    assert spec_hash(other)[:12] in error["message"]
    assert "org/other" in error["message"]
    for swap in (httpx.get(address + path).json()["swap"] for path in (PATH, "/topology")):
        assert (swap["phase"], swap["model_name"]) == ("preparing", "org/other")
        assert swap["ranks"] == [
            {
                "rank": 0,
                "state": "waiting",
                "fetched_bytes": 0,
                "wanted_bytes": 0,
                "loaded_ahead": False,
                "reason": "",
            }
        ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is not JSON"),
        (render(group_spec()).encode()[:-20], "is not JSON"),
        (b"{}", "model_name: is required"),
        (render(group_spec(deployment_name="another")).encode(), "must be that of this group"),
        (render(group_spec()).replace('"ranks"', '"rnks"').encode(), "rnks: unknown key"),
        (render(group_spec()).replace("30", "0").encode(), "have one layer at least"),
        (render(group_spec(max_model_len=0)).encode(), "max_model_len = 0: must be at least 1"),
    ],
)
def test_what_is_no_spec_is_refused_by_the_key(
    address: str, pushed: PushedEngine, content: bytes, told: str
) -> None:
    answer = httpx.put(address + PATH, content=content, headers=signed(content))
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]
    assert pushed.swap is None
    assert pushed.in_force.spec == group_spec()


def test_who_has_no_key_changes_nothing(address: str, pushed: PushedEngine) -> None:
    body = render(group_spec(model_name="org/other")).encode()
    good = signed(body)
    wrong: list[tuple[bytes, dict[str, Any]]] = [
        (body, {}),
        (body, {"Authorization": "Bearer the-management-key"}),
        (body, signed(body, key=bytes(32))),
        (body, signed(body, method="POST")),
        (body, signed(body, path="/set_config")),
        (body + b" ", good),
    ]
    for content, headers in wrong:
        answer = httpx.put(address + PATH, content=content, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_signature"
        assert answer.headers["www-authenticate"] == "Splitstack-HMAC-SHA256"
    assert pushed.swap is None
    assert httpx.put(address + PATH, content=body, headers=good).status_code == 202
    again = httpx.put(address + PATH, content=body, headers=good)
    assert again.status_code == 401
    assert "was taken before" in again.json()["error"]["message"]


def test_requests_wait_and_are_answered_by_what_is_served_then(
    address: str, pushed: PushedEngine
) -> None:
    pushed.gate.close()
    answers: list[httpx.Response] = []
    url = f"{address}/v1/chat/completions"
    asking = threading.Thread(target=lambda: answers.append(httpx.post(url, json=CHAT, timeout=60)))
    asking.start()
    while not pushed.gate.waiting:
        time.sleep(0.01)
    assert httpx.get(f"{address}/readyz").status_code == 200
    assert not pushed.requests
    pushed.in_force = Served(group_spec(model_name="org/other"), "another commit")
    pushed.gate._open._loop.call_soon_threadsafe(pushed.gate.open)  # type: ignore[attr-defined]
    asking.join(60)
    assert answers[0].status_code == 200
    assert pushed.gate.entering == pushed.gate.waiting == 0
    models = httpx.get(f"{address}/v1/models").json()["data"]
    assert [item["id"] for item in models] == ["org/other", DEPLOYMENT]


def test_who_waits_does_so_within_his_deadline(address: str, pushed: PushedEngine) -> None:
    pushed.gate.close()
    before = pushed.in_force
    pushed.in_force = replace(before, spec=group_spec(request_deadline_s=0.2))
    answer = httpx.post(f"{address}/v1/chat/completions", json=CHAT)
    assert answer.status_code == 504
    assert "the model is being changed" in answer.json()["error"]["message"]
    pushed.in_force = before
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/v1/chat/completions", json=CHAT, timeout=0.2)
    while pushed.gate.waiting:
        time.sleep(0.01)
    assert not pushed.requests
