"""Server-side request forgery: a client's field names an address, and the server goes there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from runner.master.text.model_text import ModelText
from tests.advisories.running_tiers import BLOCK, RunningTiers, running_tiers
from tests.runner.master.scripted_engine import ScriptedEngine
from tests.runner.master.serving import master_app


@pytest.fixture
def inside() -> Iterator[socket.socket]:
    """A service that only the server could reach; a test fails when somebody connects."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.fixture
def tiers(engine: ScriptedEngine, demo_text: ModelText, tmp_path: Path) -> Iterator[RunningTiers]:
    master = master_app(engine, demo_text)
    with running_tiers(master, tmp_path) as running:
        yield running


def parts(url: str) -> list[dict[str, Any]]:
    return [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": url},
        {"type": "input_image", "image_url": url},
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "audio_url", "audio_url": {"url": url}},
        {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
        {"type": "file", "file": {"file_id": url}},
        {"type": "text", "text": "x", "image_url": {"url": url}},
    ]


def fields(url: str) -> list[dict[str, Any]]:
    return [
        {"documents": [{"url": url}]},
        {"web_search_options": {"url": url}},
        {"tools": [{"type": "mcp", "server_url": url}]},
        {"response_format": {"type": "json_schema", "json_schema": {"$ref": url}}},
        {"guided_json": {"$ref": url}},
        {"chat_template": f"{{% include '{url}' %}}"},
        {"lora_path": url},
        {"webhook": url},
        {"model": url},
    ]


def test_media_by_address_are_refused_and_not_fetched(
    tiers: RunningTiers, inside: socket.socket
) -> None:
    """Images, sound and files by URL make the server fetch what the client could not reach."""
    url = f"http://127.0.0.1:{inside.getsockname()[1]}/latest/meta-data"
    for base, model in (
        (tiers.inference_server, BLOCK),
        (tiers.proxy_block, BLOCK),
        (tiers.master, "test/model"),
    ):
        for part in parts(url):
            message = {"role": "user", "content": [part]}
            body = {"model": model, "messages": [message]}
            answer = httpx.post(f"{base}/v1/chat/completions", json=body, timeout=30)
            assert answer.status_code == 400, (part, answer.text)
            assert answer.json()["error"]["param"].startswith("messages[0].content")


def test_other_fields_with_addresses_are_refused_and_not_followed(
    tiers: RunningTiers, inside: socket.socket
) -> None:
    """The same by fields for documents, tools, schemas, adapters, or the model itself."""
    url = f"http://127.0.0.1:{inside.getsockname()[1]}/"
    message = {"role": "user", "content": "x"}
    for base, model in ((tiers.inference_server, BLOCK), (tiers.master, "test/model")):
        for field in fields(url):
            body = {"model": model, "messages": [message]} | field
            answer = httpx.post(f"{base}/v1/chat/completions", json=body, timeout=30)
            assert answer.status_code in (400, 404), (field, answer.text)
    for data in ({"message": url}, {"message": "x", "image_url": url}, {"inputs": [url]}):
        body = {"model": BLOCK, "session_id": "s", "seq_no": 1, "data": data}
        httpx.post(f"{tiers.inference_server}/v1/infer", json=body, timeout=30)
    envelope = {"model": url, "session_id": "s", "seq_no": 1, "data": "x"}
    answer = httpx.post(f"{tiers.inference_server}/v1/infer", json=envelope, timeout=30)
    assert answer.status_code == 404


def test_headers_do_not_choose_where_a_request_goes(
    tiers: RunningTiers, inside: socket.socket
) -> None:
    """The same by headers that a proxy in front would set."""
    host = f"127.0.0.1:{inside.getsockname()[1]}"
    names = ("Host", "X-Forwarded-Host", "X-Original-URL", "X-Upstream", "Forwarded", "Referer")
    body = {"model": BLOCK, "messages": [{"role": "user", "content": "x"}]}
    for name in names:
        path = f"{tiers.inference_server}/v1/chat/completions"
        answer = httpx.post(path, json=body, headers={name: host}, timeout=30)
        assert answer.status_code == 200, answer.text
