"""Answers that are held to a form, in real processes: the same after a loss in the middle."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from tests.e2e.random_model import save_random_model
from tests.e2e.rank_group import MASTER, RankGroup
from tests.e2e.test_carried import Caller

pytestmark = pytest.mark.slow

LAYERS = 4
COLOURS = {
    "type": "object",
    "properties": {
        "first": {"type": "string", "maxLength": 20},
        "colours": {
            "type": "array",
            "items": {"enum": ["red", "green", "violet"]},
            "minItems": 60,
            "maxItems": 80,
        },
        "last": {"type": ["boolean", "null"]},
    },
    "required": ["first", "colours", "last"],
    "additionalProperties": False,
}
WORDS = r"([a-z]{2,5} ){60}\."
HELD: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Which colours?"}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": COLOURS}},
}
OWN: dict[str, Any] = {"max_tokens": 900, "ignore_eos": False}
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {**HELD, "temperature": 0}),
    ("/v1/chat/completions", {**HELD, "temperature": 1.2, "seed": 5, "n": 2, "logprobs": True}),
    ("/v1/completions", {"prompt": "Once", "seed": 3, "guided_regex": WORDS, "top_p": 0.9}),
    ("/v1/completions", {"prompt": "A river", "temperature": 0, "max_tokens": 300}),
]


@pytest.fixture(
    scope="module",
    params=[2, *(pytest.param(ranks, marks=pytest.mark.long) for ranks in (1, 4))],
)
def group(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RankGroup]:
    ranks = request.param
    layers = [(LAYERS * rank // ranks, LAYERS * (rank + 1) // ranks) for rank in range(ranks)]
    model = save_random_model(tmp_path_factory.mktemp("model"), LAYERS)
    group = RankGroup(model, layers, tmp_path_factory.mktemp("group"))
    try:
        group.start_all()
        yield group
    finally:
        group.stop()


@pytest.fixture(scope="module")
def uncut(group: RankGroup) -> list[Caller]:
    callers = [Caller(path, OWN | asked) for path, asked in ASKED]
    ask(group, callers)
    return callers


def ask(
    group: RankGroup, callers: list[Caller], in_the_middle: Callable[[], None] | None = None
) -> None:
    async def run() -> None:
        enough = [asyncio.Event() if in_the_middle else None for _ in callers]
        async with httpx.AsyncClient(base_url=group.url, timeout=120) as client:
            tasks = [
                asyncio.create_task(caller.ask(client, event))
                for caller, event in zip(callers, enough, strict=True)
            ]
            if in_the_middle is not None:
                await asyncio.gather(*(event.wait() for event in enough if event is not None))
                in_the_middle()
            await asyncio.gather(*tasks)

    asyncio.run(run())


def texts(caller: Caller) -> list[str]:
    """By choice."""
    found = [""] * len(caller.ids)
    for line in caller.confirmed.split(b"\n\n"):
        if line.startswith(b"data: {"):
            for choice in json.loads(line.removeprefix(b"data: "))["choices"]:
                said = choice["text"] if "text" in choice else choice["delta"].get("content")
                found[choice["index"]] += said or ""
    return found


def assert_same(callers: list[Caller], uncut: list[Caller]) -> None:
    for caller, whole in zip(callers, uncut, strict=True):
        assert caller.done
        assert caller.ids == whole.ids
        for index in range(len(whole.ids)):
            assert caller.by_choice(index) == whole.by_choice(index)


def test_answers_are_of_their_form(uncut: list[Caller]) -> None:
    held, sampled, words, plain = (texts(caller) for caller in uncut)
    for text in (*held, *sampled):
        jsonschema.validate(json.loads(text), COLOURS)
    assert len({*held, *sampled}) == 3
    assert re.fullmatch(WORDS, words[0])
    assert plain[0]
    for caller in uncut[:3]:
        assert b'"finish_reason":"stop"' in caller.confirmed.replace(b": ", b":")


def test_a_stage_is_killed_in_the_middle(group: RankGroup, uncut: list[Caller]) -> None:
    callers = [Caller(path, OWN | asked) for path, asked in ASKED]
    epoch = group.topology()["epoch"]
    ask(group, callers, lambda: group.restart(len(group.spec.ranks) - 1))
    assert group.topology()["epoch"] > epoch
    assert_same(callers, uncut)


def test_the_master_is_killed_in_the_middle(group: RankGroup, uncut: list[Caller]) -> None:
    callers = [Caller(path, OWN | asked) for path, asked in ASKED]
    ask(group, callers, lambda: group.restart(MASTER))
    assert not any(caller.done for caller in callers)
    group.wait_ready(60)
    ask(group, callers)
    assert_same(callers, uncut)


def test_ids_that_do_not_follow_the_form_end_their_own_request(
    group: RankGroup, uncut: list[Caller]
) -> None:
    group.wait_ready(60)
    path, asked = ASKED[0]
    wrong = Caller(path, OWN | asked)
    assert uncut[0].beginning is not None
    wrong.beginning, wrong.ids = uncut[0].beginning, [(1000, 1001, 1002)]
    other = Caller(*ASKED[2])
    other.body |= OWN
    epoch = group.topology()["epoch"]
    ask(group, [wrong, other])
    assert not wrong.done
    assert other.ids == uncut[2].ids
    assert group.topology()["epoch"] == epoch
