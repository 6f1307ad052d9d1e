"""Pages of other origins: what a browser is told, before a key is asked for and after."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import httpx
import pytest

from contract.specs import BlockSpec
from tests.inference_server.conftest import Tiers
from tests.web.tier_process import TierProcess

BLOCK = "block-1"
PAGE, STRANGER = "https://chat.test", "https://evil.test"
KEY = {"Authorization": "Bearer sk-ann"}
ALLOWED = "access-control-allow-origin"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def block(tiers: Tiers) -> BlockSpec:
    return BlockSpec(BLOCK, tiers.proxy(BLOCK).url)


@pytest.fixture(scope="module")
def server(tiers: Tiers, block: BlockSpec) -> TierProcess:
    """With keys, for one page."""
    path = tiers.folder / "keys.json"
    digest = hashlib.sha256(b"sk-ann").hexdigest()
    path.write_text(json.dumps([{"name": "ann", "sha256": digest}]))
    options = ("--api-keys-file", str(path))
    return tiers.server(block, options=options, cors_origins=(PAGE,))


@pytest.fixture(scope="module")
def closed(tiers: Tiers, block: BlockSpec) -> TierProcess:
    """As it is by default."""
    return tiers.server(block)


def preflight(server: TierProcess, origin: str) -> httpx.Response:
    """What a browser asks before OpenAI's client for browsers may post."""
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    return httpx.options(server.url + CHAT, headers=headers)


def chat(server: TierProcess, origin: str, **more: str) -> httpx.Response:
    body: Any = {"model": BLOCK, "messages": [{"role": "user", "content": "x"}]}
    return httpx.post(server.url + CHAT, json=body, headers={"Origin": origin, **more})


def test_a_preflight_needs_no_key(server: TierProcess) -> None:
    answer = preflight(server, PAGE)
    assert answer.status_code == 200
    assert answer.headers[ALLOWED] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in answer.headers


def test_the_page_reads_answers_and_refusals(server: TierProcess) -> None:
    answer = chat(server, PAGE, **KEY)
    assert (answer.status_code, answer.headers[ALLOWED]) == (200, PAGE)
    assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
    refused = chat(server, PAGE)
    assert (refused.status_code, refused.headers[ALLOWED]) == (401, PAGE)


def test_a_page_that_is_not_listed_reads_nothing(server: TierProcess) -> None:
    refused = preflight(server, STRANGER)
    assert refused.status_code == 400
    assert ALLOWED not in refused.headers
    assert ALLOWED not in chat(server, STRANGER, **KEY).headers


def test_none_by_default(closed: TierProcess) -> None:
    assert preflight(closed, PAGE).status_code == 405
    assert ALLOWED not in chat(closed, PAGE).headers


def test_every_page(tiers: Tiers, block: BlockSpec) -> None:
    server = tiers.server(block, cors_origins=("*",))
    assert preflight(server, STRANGER).status_code == 200
    assert chat(server, STRANGER).headers[ALLOWED] == "*"


def test_the_servers_own_page_stays_as_it_is(server: TierProcess, closed: TierProcess) -> None:
    """It comes from the server's own origin, which is in no list."""
    page, plain = (httpx.get(one.url + "/") for one in (server, closed))
    assert page.text == plain.text
    policy = "content-security-policy"
    assert page.headers[policy] == plain.headers[policy]
    assert chat(server, server.url, **KEY).status_code == 200
