"""What clients see of answers that are asked for all at once, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from contract.carry import LINE, Beginning, parse_line
from tests.waiting import wait_for
from tests.without_reuse import without_reuse

NEW_TOKENS = 400
BEGUN = 20  # events, before anything happens


@dataclass
class Seen:
    """What a client was told, by choice."""

    texts: dict[int, str] = field(default_factory=dict)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    usage: dict[str, int] | None = None
    ids: set[str] = field(default_factory=set, compare=False)
    done: bool = False
    events: int = field(default=0, compare=False)
    request_id: str = field(default="", compare=False)
    beginning: Beginning | None = field(default=None, compare=False)

    def take(self, document: dict[str, Any]) -> None:
        assert "error" not in document, document
        self.ids.add(document["id"])
        self.usage = without_reuse(document.get("usage")) or self.usage
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
        body = {"max_tokens": NEW_TOKENS, "ignore_eos": True, **body}
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
    return found
