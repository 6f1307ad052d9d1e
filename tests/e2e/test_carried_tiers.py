"""Master, proxy blocks and session store are killed under requests; clients see a pause alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.carry import ASKS_FOR_IDS, HEADER, LINE, Beginning, parse_line
from contract.specs import BlockSpec, InferenceServerSpec, ProxySpec, SessionsSpec
from tests.e2e.random_model import save_random_model
from tests.e2e.rank_group import MASTER, RankGroup
from tests.programs import needs
from tests.proxy_block.stores.redis_server import RedisServer
from tests.waiting import wait_for
from tests.web.tier_process import TierProcess

pytestmark = [pytest.mark.slow, needs("redis-server")]

BLOCK = "block-1"
NEW_TOKENS = 400
BEGUN = 20  # events, before anybody is killed
CHAT = {"messages": [{"role": "user", "content": "Write one odd sentence."}]}
USAGE = {"stream_options": {"include_usage": True}}
ASKED: list[dict[str, Any]] = [
    {"prompt": "A river begins in", "temperature": 0, "stream": True, **USAGE},
    {"prompt": "He opened the letter", "seed": 5, "n": 2, "stream": True, **USAGE},
    {**CHAT, "seed": 7, "temperature": 1.3, "frequency_penalty": 1.5, "stream": True, **USAGE},
    {**CHAT, "seed": 8, "top_p": 0.9, "n": 2},
    {"prompt": "The old library had", "temperature": 0},
]


class Stack:
    """A rank group of two, two replicas of a block on one Redis, the inference server."""

    def __init__(self, folder: Path, model: str, ending: ExitStack) -> None:
        self.folder, self._ending = folder, ending
        self.group = RankGroup(model, [(0, 1), (1, 2)], folder)
        ending.callback(self.group.stop)
        self.group.start_all()
        self.redis = ending.enter_context(RedisServer(folder))
        self.proxies = [self._proxy(), self._proxy()]
        block = BlockSpec(BLOCK, "", replica_urls=tuple(one.url for one in self.proxies))
        spec = InferenceServerSpec(
            "fault", (block,), request_log_path=str(folder / "requests.sqlite3")
        )
        self.server = ending.enter_context(TierProcess("inference_server", spec, folder))

    def _proxy(self, port: int | None = None) -> TierProcess:
        sessions = SessionsSpec(url=self.redis.url)
        spec = ProxySpec(BLOCK, "fault", self.group.url, sessions=sessions)
        return self._ending.enter_context(TierProcess("proxy_block", spec, self.folder, port))

    def lose_master(self) -> None:
        self.group.restart(MASTER)

    def lose_proxy(self) -> None:
        """The one that has requests; the other one goes on."""
        self._lose(self.busy())

    def lose_both(self) -> None:
        for one in self.proxies:
            one.process.kill()
        for one in list(self.proxies):
            self._lose(one)

    def lose_all(self) -> None:
        self.lose_master()
        self.lose_both()

    def lose_store(self) -> None:
        self.redis.kill()
        self.redis.start()

    def _lose(self, proxy: TierProcess) -> None:
        proxy.process.kill()
        proxy.process.wait()
        self.proxies[self.proxies.index(proxy)] = self._proxy(proxy.port)

    def busy(self) -> TierProcess:
        def found() -> TierProcess | None:
            [block] = httpx.get(f"{self.server.url}/v1/blocks", timeout=20).json()["data"]
            busy = [one["url"] for one in block["replicas"] if one["in_flight"]]
            return next((one for one in self.proxies if one.url in busy), None)

        proxy: TierProcess = wait_for(found)
        return proxy


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    model = save_random_model(tmp_path_factory.mktemp("model"), 2)
    with ExitStack() as ending:
        yield Stack(tmp_path_factory.mktemp("stack"), model, ending)


@dataclass
class Seen:
    """What a client was told, by choice."""

    texts: dict[int, str] = field(default_factory=dict)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    usage: dict[str, int] | None = None
    ids: set[str] = field(default_factory=set)
    done: bool = False
    events: int = field(default=0, compare=False)
    request_id: str = field(default="", compare=False)
    beginning: Beginning | None = field(default=None, compare=False)

    def take(self, document: dict[str, Any]) -> None:
        assert "error" not in document, document
        self.ids.add(document["id"])
        self.usage = document.get("usage") or self.usage
        for choice in document["choices"]:
            told = choice.get("delta") or choice.get("message") or choice
            said = told.get("content") or told.get("text") or ""
            index = choice["index"]
            self.texts[index] = self.texts.get(index, "") + said
            if choice.get("finish_reason"):
                self.finish_reasons[index] = choice["finish_reason"]

    async def ask(
        self, client: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str]
    ) -> None:
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        body = {"model": BLOCK, "max_tokens": NEW_TOKENS, "ignore_eos": True, **body}
        async with client.stream("POST", path, json=body, headers=headers) as answer:
            self.request_id = answer.headers["x-request-id"]
            assert answer.status_code == 200, await answer.aread()
            if answer.headers["content-type"] == "application/json":
                self.take(json.loads(await answer.aread()))
                self.done = True
                return
            async for line in answer.aiter_lines():
                self._take_line(line)

    def _take_line(self, line: str) -> None:
        if line.encode().startswith(LINE):
            told = parse_line(line.encode())
            self.beginning = told if isinstance(told, Beginning) else self.beginning
        if not line.startswith("data: "):
            return
        assert not self.done
        self.events += 1
        if line == "data: [DONE]":
            self.done = True
        else:
            self.take(json.loads(line.removeprefix("data: ")))


def asked(
    url: str,
    bodies: list[dict[str, Any]],
    fault: Callable[[], None] | None = None,
    headers: dict[str, str] | None = None,
) -> list[Seen]:
    """All at once; `fault` comes when every stream flows."""
    found = [Seen() for _ in bodies]

    async def run() -> None:
        async with (
            httpx.AsyncClient(base_url=url, timeout=180) as client,
            asyncio.TaskGroup() as all_,
        ):
            for one, body in zip(found, bodies, strict=True):
                all_.create_task(one.ask(client, body, headers or {}))

    # The fault starts processes, which end with the thread that they were started in.
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(asyncio.run, run())
        if fault is not None:
            streams = [one for one, body in zip(found, bodies, strict=True) if body.get("stream")]
            wait_for(lambda: asking.done() or all(one.events >= BEGUN for one in streams))
            assert not asking.done()
            assert not any(one.done for one in found)
            fault()
        asking.result()
    for one in found:
        assert one.done
        # One answer, whoever made its parts.
        assert len(one.ids) == 1
        one.ids.clear()
    return found


@pytest.fixture(scope="module")
def expected(stack: Stack) -> list[Seen]:
    found = asked(stack.server.url, ASKED)
    assert len({text for one in found for text in one.texts.values()}) == 7
    return found


@pytest.mark.parametrize("lost", ["master", "proxy", "both", "all"])
def test_openais_answers_go_on(stack: Stack, expected: list[Seen], lost: str) -> None:
    found = asked(stack.server.url, ASKED, getattr(stack, f"lose_{lost}"))
    assert found == expected
    for one in found:
        assert one.usage is not None
        assert one.usage["completion_tokens"] == NEW_TOKENS * len(one.texts)
        rows = httpx.get(f"{stack.server.url}/logs/request/{one.request_id}").json()["data"]
        [row] = rows
        assert (row["outcome"], row["completion_tokens"]) == ("ok", one.usage["completion_tokens"])


def test_unseeded_answers_go_on_with_the_seed_that_was_told(stack: Stack) -> None:
    bodies = [{**body, "temperature": 1.1} for body in ASKED if "seed" not in body]
    bodies = [{**body, "stream": True, **USAGE, "n": 2} for body in bodies]
    # Whoever carries is told the seed.
    headers = {HEADER: ASKS_FOR_IDS}
    found = asked(stack.proxies[0].url, bodies, stack.lose_master, headers)
    beginnings = [one.beginning for one in found]
    seeded = [
        body | {"seed": told.seed}
        for body, told in zip(bodies, beginnings, strict=True)
        if told is not None
    ]
    assert asked(stack.server.url, seeded) == found


def turn(stack: Stack, session_id: str, seq_no: int) -> httpx.Response:
    config = {"max_new_tokens": 150, "do_sample": False}
    data = {"message": f"Turn {seq_no}: go on.", "generation_config": config}
    body = {"model": BLOCK, "session_id": session_id, "seq_no": seq_no, "data": data}
    return httpx.post(f"{stack.server.url}/v1/infer", json=body, timeout=180)


@pytest.mark.parametrize("lost", ["master", "proxy", "both", "store"])
def test_turns_of_sessions_go_on_and_are_recorded_once(stack: Stack, lost: str) -> None:
    undisturbed = [turn(stack, f"calm-{lost}", number).json()["data"] for number in (1, 2, 3)]
    session_id = f"lost-{lost}"
    found = [turn(stack, session_id, 1).json()["data"]]
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(turn, stack, session_id, 2)
        stack.busy()
        getattr(stack, f"lose_{lost}")()
        answer = asking.result()
    assert answer.status_code == 200, answer.text
    found.append(answer.json()["data"])
    # Asked again it is the recorded one; its history is in the next one's prompt, once.
    assert turn(stack, session_id, 2).json()["data"] == found[-1]
    found.append(turn(stack, session_id, 3).json()["data"])
    assert found == undisturbed
