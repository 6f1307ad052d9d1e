"""Answers with their ids told: asked for, cut somewhere, and carried over to a new master."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from contract.carry import ASKS_FOR_IDS, FIELD, HEADER, LINE, Advance, Beginning, Carry, parse_line
from contract.carry import field as as_field
from runner.master.engine.engine import Engine
from runner.master.text.model_text import ModelText
from tests.runner.master.engine.stand_in_group import StandInGroup
from tests.runner.master.serving import group_spec, master_app
from web.events import DONE

ASKS = {HEADER: ASKS_FOR_IDS}


@dataclass
class Told:
    """What one stream said: `parts` are the events that each Advance confirms, with it."""

    beginning: Beginning
    parts: list[tuple[list[dict[str, Any]], Advance]] = field(default_factory=list)
    end: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False

    def carry(self, before: Carry | None, kept: int) -> Carry:
        """After `kept` of the parts, by whoever had carried `before`."""
        ids: list[tuple[int, ...]] = [()] * self.beginning.choices
        if before is not None:
            ids = list(before.ids)
        for _, advance in self.parts[:kept]:
            ids[advance.index] += advance.ids
        return Carry(self.beginning, tuple(ids))


def read(content: bytes) -> Told:
    first, *items = content.split(b"\n\n")[:-1]
    beginning = parse_line(first)
    assert isinstance(beginning, Beginning)
    told = Told(beginning)
    for item in items:
        if item.startswith(LINE):
            advance = parse_line(item)
            assert isinstance(advance, Advance)
            assert advance.ids
            told.parts.append((told.end, advance))
            told.end = []
        elif item + b"\n\n" == DONE:
            told.done = True
        else:
            told.end.append(json.loads(item.removeprefix(b"data: ")))
    return told


@asynccontextmanager
async def new_master(text: ModelText, **spec: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a master that has just started, over the stand-in group."""
    group = StandInGroup(ranks=1, spec=group_spec(**spec))
    group.listener = engine = Engine(group)
    group.form()
    transport = httpx.ASGITransport(master_app(engine, text))
    async with httpx.AsyncClient(transport=transport, base_url="http://master") as client:
        yield client


async def ask(
    text: ModelText, path: str, body: dict[str, Any], carry: Carry | None = None
) -> httpx.Response:
    """Of a new master."""
    carried = {} if carry is None else {FIELD: as_field(carry)}
    async with new_master(text) as client:
        return await client.post(path, json=body | carried, headers=ASKS)
