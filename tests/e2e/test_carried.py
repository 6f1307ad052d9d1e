"""The master is killed under streams; whoever asked for the ids has each go on at the next one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from contract.carry import ASKS_FOR_IDS, FIELD, HEADER, LINE, Advance, Beginning, Carry, parse_line
from contract.carry import field as as_field
from tests.e2e.random_model import save_random_model
from tests.e2e.rank_group import MASTER, RankGroup
from web.events import DONE

pytestmark = pytest.mark.slow

NEW_TOKENS = 400
KEPT = 20  # confirmed pieces before the master dies
COMMON = {"model": "fault", "max_tokens": NEW_TOKENS, "stream": True, "ignore_eos": True}
CHAT = {"messages": [{"role": "user", "content": "Write one odd sentence."}]}
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "A river begins in", "temperature": 0}),
    ("/v1/completions", {"prompt": "He opened the letter", "seed": 5, "n": 2, "logprobs": 1}),
    ("/v1/chat/completions", {**CHAT, "temperature": 1.3, "frequency_penalty": 1.5}),
    (
        "/v1/chat/completions",
        {**CHAT, "seed": 7, "top_p": 0.9, "stream_options": {"include_usage": True}},
    ),
]


@pytest.fixture
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankGroup]:
    folder = tmp_path_factory.mktemp("group")
    group = RankGroup(
        save_random_model(tmp_path_factory.mktemp("model"), 2), [(0, 1), (1, 2)], folder
    )
    try:
        group.start_all()
        yield group
    finally:
        group.stop()


class Caller:
    """Asks once, and again with what was confirmed until then."""

    def __init__(self, path: str, asked: dict[str, Any]) -> None:
        self.path, self.body = path, COMMON | asked
        self.beginning: Beginning | None = None
        self.ids: list[tuple[int, ...]] = []
        self.confirmed = b""
        self.pieces = 0
        self.done = False

    async def ask(self, client: httpx.AsyncClient, enough: asyncio.Event | None = None) -> None:
        """Until [DONE], or until the connection breaks; `enough` is set after KEPT pieces."""
        body = dict(self.body)
        if self.beginning is not None:
            body[FIELD] = as_field(Carry(self.beginning, tuple(self.ids)))
        held = events = b""
        try:
            async with client.stream(
                "POST", self.path, json=body, headers={HEADER: ASKS_FOR_IDS}
            ) as answer:
                assert answer.status_code == 200, await answer.aread()
                async for content in answer.aiter_bytes():
                    held += content
                    while (end := held.find(b"\n\n") + 2) >= 2:
                        item, held = held[:end], held[end:]
                        events = self._take(item, events)
                    if enough is not None and self.pieces >= KEPT:
                        enough.set()
        except httpx.TransportError:
            assert enough is not None

    def _take(self, item: bytes, events: bytes) -> bytes:
        """One event or comment; returns the events that are not confirmed."""
        if not item.startswith(LINE) and item != DONE:
            return events if item.startswith(b":") else events + item
        if item == DONE:
            self.done = True
        elif isinstance(told := parse_line(item), Advance):
            self.ids[told.index] += told.ids
            self.pieces += 1
        else:
            self.ids = self.ids or [()] * told.choices
            assert self.beginning in (None, told)
            self.beginning = told
        self.confirmed += events
        return b""

    def by_choice(self, index: int) -> bytes:
        """Without what is one answer's own, as how much of its prompt was computed before, and
        without log probabilities: those of a prefill in other chunks differ in their last bits."""
        assert self.beginning is not None
        own = (self.beginning.id, self.beginning.created)
        said = self.confirmed.replace(own[0].encode(), b"").replace(str(own[1]).encode(), b"")
        said = re.sub(rb"-?\d+\.\d+(e-\d+)?", b"", said)
        said = re.sub(rb'"cached_tokens": ?\d+', b"", said)
        events = [event for event in said.split(b"\n\n") if event]
        other = b'"index":%d' % (1 - index)
        return b"\n".join(event for event in events if other not in event)


def test_the_master_is_killed_under_streams(group: RankGroup) -> None:
    callers = [Caller(path, asked) for path, asked in ASKED]

    async def cut() -> None:
        async with httpx.AsyncClient(base_url=group.url, timeout=120) as client:
            enough = [asyncio.Event() for _ in callers]
            tasks = [
                asyncio.create_task(caller.ask(client, event))
                for caller, event in zip(callers, enough, strict=True)
            ]
            await asyncio.gather(*(event.wait() for event in enough))
            group.restart(MASTER)
            await asyncio.gather(*tasks)

    async def go_on(asking: list[Caller]) -> None:
        async with httpx.AsyncClient(base_url=group.url, timeout=120) as client:
            await asyncio.gather(*(caller.ask(client) for caller in asking))

    asyncio.run(cut())
    assert not any(caller.done for caller in callers)
    group.wait_ready(60)
    asyncio.run(go_on(callers))
    # Uncut, with the seeds that were told.
    uncut = [Caller(caller.path, caller.body) for caller in callers]
    for caller, carried in zip(uncut, callers, strict=True):
        assert carried.beginning is not None
        caller.body = carried.body | {"seed": carried.beginning.seed}
    asyncio.run(go_on(uncut))
    for caller, carried in zip(uncut, callers, strict=True):
        assert caller.done
        assert carried.done
        assert carried.ids == caller.ids
        assert [len(ids) for ids in carried.ids] == [NEW_TOKENS] * len(carried.ids)
        for index in range(len(carried.ids)):
            assert carried.by_choice(index) == caller.by_choice(index)
