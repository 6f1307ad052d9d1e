"""The logs of a real run: JSON, with request id, rank and epoch, and without what was said."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.specs import BlockSpec, InferenceServerSpec
from tests.e2e.local_stack import LocalStack
from tests.waiting import wait_for
from tests.web.tier_process import TierProcess

pytestmark = pytest.mark.slow
BLOCK = "pytorch-block-3"
SECRET = "heliotrope-marmalade"
REQUEST_ID = "request-of-the-log-test"


def lines(stack: LocalStack, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stack.log(name)]


def ask(url: str, path: str, body: dict[str, Any], key: str = "") -> httpx.Response:
    headers = {"X-Request-Id": REQUEST_ID}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return httpx.post(f"{url}{path}", json=body, headers=headers, timeout=120)


@pytest.fixture(scope="module", autouse=True)
def asked(local_stack: LocalStack) -> None:
    """Requests of every kind, good and bad, that say the secret."""
    messages = [{"role": "user", "content": f"Repeat: {SECRET}"}]
    chat = {"model": BLOCK, "messages": messages, "max_completion_tokens": 4}
    infer = {
        "model": BLOCK,
        "session_id": "session-of-the-log-test",
        "seq_no": 1,
        "data": {"message": SECRET, "generation_config": {"max_new_tokens": 4}},
    }
    statuses = [
        ask(local_stack.url, "/v1/chat/completions", chat).status_code,
        ask(local_stack.url, "/v1/chat/completions", chat | {"temperature": 99}).status_code,
        ask(local_stack.url, "/v1/chat/completions", chat | {"tools": [SECRET]}).status_code,
        ask(local_stack.url, "/v1/infer", infer).status_code,
        ask(local_stack.url, "/v1/infer", infer | {"data": {"message": [SECRET]}}).status_code,
        ask(local_stack.url, f"/v1/nothing?prompt={SECRET}", {}).status_code,
    ]
    assert statuses == [200, 400, 400, 200, 400, 404]


def test_every_line_is_json_with_time_level_and_tier(local_stack: LocalStack) -> None:
    for name in local_stack.processes():
        found = lines(local_stack, name)
        assert found, name
        for line in found:
            assert {"time", "level", "tier", "logger", "message"} <= line.keys()


def test_a_request_is_found_in_every_tier_by_its_id(local_stack: LocalStack) -> None:
    for name in ("inference-server", f"proxy-{BLOCK}", "master"):
        wait_for(lambda name=name: served(local_stack, name), what=name)


def served(stack: LocalStack, name: str) -> list[dict[str, Any]]:
    return [
        line
        for line in lines(stack, name)
        if line.get("request_id") == REQUEST_ID
        and line["message"] == "request"
        and line["status"] == 200
        and line["duration_ms"] > 0
    ]


def test_stages_say_rank_and_epoch(local_stack: LocalStack) -> None:
    for rank in (0, 1):
        found = lines(local_stack, f"stage-{rank}")
        assert {line["rank"] for line in found if "rank" in line} == {rank}
    assert any(line.get("epoch", 0) >= 1 for line in lines(local_stack, "master"))


def test_what_was_said_is_in_no_log(local_stack: LocalStack) -> None:
    for name in local_stack.processes():
        assert SECRET not in "\n".join(local_stack.log(name)), name


def test_a_key_is_in_no_log(local_stack: LocalStack, tmp_path: Path) -> None:
    key = "key-of-the-log-test"
    digest = hashlib.sha256(key.encode()).hexdigest()
    file = tmp_path / "keys.json"
    file.write_text(json.dumps([{"name": "test", "sha256": digest}]))
    block = BlockSpec(BLOCK, local_stack.processes()[f"proxy-{BLOCK}"]["url"])
    spec = InferenceServerSpec("local", (block,))
    body = {"model": BLOCK, "prompt": SECRET, "max_tokens": 2}
    with TierProcess(
        "inference_server", spec, tmp_path, None, "--api-keys-file", str(file)
    ) as server:
        assert ask(server.url, "/v1/completions", body, key).status_code == 200
        assert ask(server.url, "/v1/completions", body, key + "x").status_code == 401
        log = server.errors()
    assert REQUEST_ID in log
    for said in (key, digest, SECRET):
        assert said not in log
