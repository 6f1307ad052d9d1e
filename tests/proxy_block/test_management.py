"""POST /management where a block listens beyond its own machine: the management key."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from contract.specs import ProxySpec, read_management_key
from proxy_block.api import build_app
from proxy_block.stores.sqlite import SqliteStore
from tests.web.tier_process import TierProcess

KEY = "management-key-of-the-test"
RESET = {"action": "reset"}
ASK = {"session_id": "s", "seq_no": 1, "data": {"message": "hello"}}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "management_key"
    path.write_text(KEY + "\n")
    return path


@pytest.fixture
def block(spec: ProxySpec, key_file: Path) -> Iterator[TestClient]:
    """As in a pod: bind_address is every address."""
    app = build_app(spec, {}, SqliteStore(spec.sessions), lambda: read_management_key(key_file))
    with TestClient(app) as client:
        yield client


def manage(block: TestClient, key: str = "") -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return block.post("/management", json=RESET, headers=headers).status_code


def test_a_reset_needs_the_key_and_a_question_none(block: TestClient) -> None:
    assert block.post("/infer", json=ASK).status_code == 200
    assert manage(block) == manage(block, KEY + "x") == 401
    # Nothing was forgotten: the recorded answer comes, and a lower number is still refused.
    assert block.post("/infer", json=ASK | {"seq_no": 0}).status_code == 409
    assert manage(block, KEY) == 200
    assert block.post("/infer", json=ASK | {"seq_no": 0}).status_code == 200


def test_a_new_key_counts_without_a_new_process(block: TestClient, key_file: Path) -> None:
    assert manage(block, KEY) == 200
    key_file.write_text("another-management-key")
    assert manage(block, KEY) == 401
    assert manage(block, "another-management-key") == 200


def test_a_block_without_a_key_file_lets_nobody(spec: ProxySpec) -> None:
    with TestClient(build_app(spec, {}, SqliteStore(spec.sessions))) as block:
        answer = block.post("/management", json=RESET, headers={"Authorization": f"Bearer {KEY}"})
        assert answer.status_code == 401
        assert "--management-key-file" in answer.json()["error"]["message"]


@pytest.mark.parametrize("content", [None, "short"])
def test_a_key_file_without_a_key_is_exit_code_2(
    spec: ProxySpec, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
    options = ("--management-key-file", str(path))
    process = TierProcess("proxy_block", spec, tmp_path, None, *options)
    assert process.process.wait(60) == 2
    assert f"--management-key-file {path}" in process.errors()


def test_a_pods_process_asks_for_what_is_in_the_file(
    spec: ProxySpec, tmp_path: Path, key_file: Path
) -> None:
    spec = dataclasses.replace(spec, bind_address="0.0.0.0")
    options = ("--management-key-file", str(key_file))
    with TierProcess("proxy_block", spec, tmp_path, None, *options) as process:
        url = f"http://127.0.0.1:{process.port}/management"
        assert httpx.post(url, json=RESET).status_code == 401
        proof = {"Authorization": f"Bearer {KEY}"}
        assert httpx.post(url, json=RESET, headers=proof).status_code == 200
        assert KEY not in process.errors()
