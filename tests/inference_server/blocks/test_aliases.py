"""Names that stand for several blocks: shares, blocks that are down, sessions."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest

from contract.specs import BlockSpec
from inference_server.blocks.aliases import Alias
from inference_server.blocks.table import BlockTable
from tests.inference_server.conftest import Tiers
from tests.waiting import free_ports
from tests.web.tier_process import TierProcess

SHARES = {"chat": {"blue": 3, "green": 1}}
KEYS = [f"key {number}" for number in range(2000)]


@pytest.fixture(scope="module")
def tiers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiers]:
    """One for the blocks that stay, whose model is the longer one."""
    with ExitStack() as stack:
        found = Tiers(tmp_path_factory.mktemp("aliases"), stack)
        found.upstream.max_model_len = 4000
        yield found


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiers]:
    with ExitStack() as stack:
        found = Tiers(tmp_path_factory.mktemp("others"), stack)
        found.upstream.max_model_len = 3000
        yield found


@pytest.fixture(scope="module")
def green(others: Tiers) -> BlockSpec:
    return BlockSpec("green", others.proxy("green").url)


@pytest.fixture(scope="module")
def blue(tiers: Tiers) -> BlockSpec:
    return BlockSpec("blue", tiers.proxy("blue").url, labels={"team": "a"})


def front(tiers: Tiers, *blocks: BlockSpec, aliases: Any = SHARES) -> TierProcess:
    log = str(tiers.folder / f"log-{free_ports(1)[0]}.sqlite3")
    return tiers.server(*blocks, aliases=aliases, request_log_path=log)


@pytest.fixture(scope="module")
def server(tiers: Tiers, blue: BlockSpec, green: BlockSpec) -> TierProcess:
    return front(tiers, blue, green)


def answered_by(server: TierProcess, **more: Any) -> str:
    """The block in the request log."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "x"}], **more}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    path = f"/logs/request/{answer.headers['x-request-id']}"
    [row] = httpx.get(server.url + path).json()["data"]
    assert row["outcome"] == "ok"
    return str(row["block_id"])


def infer(server: TierProcess, session: str, seq_no: int, **more: Any) -> dict[str, Any]:
    body = {"model": "chat", "session_id": session, "seq_no": seq_no, "data": {"message": "x"}}
    answer = httpx.post(f"{server.url}/v1/infer", json=body | more, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def firsts(weights: dict[str, int]) -> dict[str, str]:
    """Key -> the block that gets it."""

    async def choose() -> dict[str, str]:
        table = BlockTable((BlockSpec(name, "http://127.0.0.1:9") for name in weights), 60)
        alias = Alias("chat", weights, table)
        found = {key: (await alias.in_order(key))[0].block_id for key in KEYS}
        await table.close()
        return found

    return asyncio.run(choose())


def test_shares_are_kept_and_an_edit_moves_only_what_it_must() -> None:
    before, after = firsts({"blue": 3, "green": 1}), firsts({"blue": 1, "green": 1})
    assert 0.22 < Counter(before.values())["green"] / len(KEYS) < 0.28
    assert 0.45 < Counter(after.values())["green"] / len(KEYS) < 0.55
    assert all(after[key] == "green" for key, block in before.items() if block == "green")
    assert set(firsts({"blue": 0, "green": 1}).values()) == {"green"}


def test_the_list_of_models_has_it_first(server: TierProcess) -> None:
    """With the room that each of its blocks has."""
    models = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["chat", "blue", "green"]
    assert [model["max_model_len"] for model in models] == [3000, 4000, 3000]
    assert models[0]["blocks"] == ["blue", "green"]
    assert httpx.get(f"{server.url}/v1/models/chat").json() == models[0]


def test_a_client_asks_for_it_as_for_any_model(server: TierProcess) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused")
    messages: Any = [{"role": "user", "content": "hello"}]
    whole = client.chat.completions.create(model="chat", messages=messages)
    assert whole.choices[0].message.content == "1 messages: hello"
    stream = client.chat.completions.create(model="chat", messages=messages, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "".join(f"piece {number} " for number in range(5))
    assert client.completions.create(model="chat", prompt="x").choices[0].text == "0 messages: x"


def test_both_get_requests_and_a_cache_key_stays_with_one(server: TierProcess) -> None:
    assert {answered_by(server, prompt_cache_key=key) for key in KEYS[:12]} == {"blue", "green"}
    assert len({answered_by(server, prompt_cache_key="mine") for _ in range(4)}) == 1


def test_a_block_that_is_down_is_passed_over(tiers: Tiers, green: BlockSpec) -> None:
    """Before its health is asked again too: what nobody has taken goes on to the next one."""
    dying = tiers.proxy("blue")
    server = front(
        tiers, BlockSpec("blue", dying.url), green, aliases={"chat": {"blue": 1, "green": 0}}
    )
    assert answered_by(server) == "blue"
    dying.process.kill()
    dying.process.wait()
    assert [answered_by(server) for _ in range(3)] == ["green"] * 3
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_a_session_stays_with_the_block_that_holds_it(
    tiers: Tiers, blue: BlockSpec, green: BlockSpec, server: TierProcess
) -> None:
    """Over an edit of the shares, which starts another process of the inference server."""
    sessions = {f"session {number}": "" for number in range(8)}
    for session in sessions:
        sessions[session] = infer(server, session, 1)["model"]
    assert set(sessions.values()) == {"blue", "green"}
    edited = front(tiers, blue, green, aliases={"chat": {"blue": 0, "green": 1}})
    for session, block in sessions.items():
        answer = infer(edited, session, 2)
        assert answer["model"] == block
        assert answer["data"]["reply"] == "3 messages: x", "its history is there"
    assert infer(edited, "a new one", 1)["model"] == "green"


def test_a_session_whose_block_is_gone_begins_anew(tiers: Tiers, green: BlockSpec) -> None:
    dying = tiers.proxy("blue")
    aliases = {"chat": {"blue": 1, "green": 0}}
    server = front(tiers, BlockSpec("blue", dying.url), green, aliases=aliases)
    assert infer(server, "moves", 1)["model"] == "blue"
    dying.process.kill()
    dying.process.wait()
    for seq_no, messages in ((2, 1), (3, 3)):
        answer = infer(server, "moves", seq_no)
        assert (answer["model"], answer["data"]["reply"]) == ("green", f"{messages} messages: x")


def test_in_graphs_and_queries(server: TierProcess) -> None:
    answer = infer(server, "graph", 1, graph={"chat": ["green"]})
    assert answer["data"]["reply"] == "1 messages: 1 messages: x"
    chosen = infer(server, "query", 1, selection_query={"labels": {"team": "a"}})
    assert chosen["model"] == "blue"


def test_the_pipeline_is_that_of_the_largest_share(server: TierProcess) -> None:
    url = f"{server.url}/v1/events?model=chat"
    with httpx.stream("GET", url, timeout=30) as answer:
        line = next(line for line in answer.iter_lines() if line.startswith("data:"))
    assert '"block_id": "blue"' in line.replace('":"', '": "')


def test_without_any_of_its_blocks(tiers: Tiers, blue: BlockSpec) -> None:
    server = front(tiers, blue, aliases={"chat": {"red": 1}})
    body = {"model": "chat", "messages": [{"role": "user", "content": "x"}]}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert answer.status_code == 503
    assert "model = chat: none of its blocks (red) is among" in answer.json()["error"]["message"]
    assert httpx.get(f"{server.url}/v1/models/chat").json()["max_model_len"] is None
