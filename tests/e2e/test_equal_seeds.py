"""Equal seeds give equal texts, whatever the company, the chunks of a prompt and replays."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.random_model import save_random_model
from tests.e2e.rank_group import RankGroup
from tests.e2e.streams import SUBJECTS
from tests.e2e.tcp_proxy import TcpProxy
from tests.lanes import examples

pytestmark = pytest.mark.slow

LAYERS = 4
REPETITIONS = 5  # 50 in `make test-all`
CUT_EVERY = 3  # repetitions
PROMPT = "Write one odd sentence about a clock that runs backwards. " * 4
# Each with four choices of 16 tokens.
ASKED: list[dict[str, Any]] = [
    {"temperature": 0.7, "seed": 42},
    {"temperature": 1.3, "seed": 42},
    {"temperature": 1.0, "top_p": 0.9, "seed": 43},
    {"temperature": 2.0, "top_p": 0.95, "seed": 44},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_random_model(tmp_path_factory.mktemp("model"), LAYERS)


class Ranks:
    """A group whose stages reach their master through a network that can be cut."""

    def __init__(self, model: str, count: int, state: Path) -> None:
        borders = [LAYERS * rank // count for rank in range(count + 1)]
        layers = list(itertools.pairwise(borders))
        # A small budget: the company decides where a prompt is cut into chunks.
        self.group = RankGroup(
            model, layers, state, reach_master="127.0.0.4", prefill_token_budget=24
        )
        port = self.group.master_spec.master_port
        self.network = TcpProxy(("127.0.0.4", port), ("127.0.0.1", port))

    def end(self) -> None:
        self.group.stop()
        self.network.close()


@pytest.fixture(params=[2, *(pytest.param(count, marks=pytest.mark.long) for count in (1, 4))])
def ranks(request: pytest.FixtureRequest, model: str, tmp_path: Path) -> Iterator[Ranks]:
    made = Ranks(model, request.param, tmp_path)
    try:
        made.group.start_all()
        yield made
    finally:
        made.end()


async def ask(client: httpx.AsyncClient, body: dict[str, Any], delay_s: float = 0) -> list[str]:
    await asyncio.sleep(delay_s)
    wanted = {"model": "fault", "prompt": PROMPT, "max_tokens": 16, "n": 4, "ignore_eos": True}
    answer = await client.post("/v1/completions", json=wanted | body)
    assert answer.status_code == 200, answer.text
    choices = sorted(answer.json()["choices"], key=lambda choice: choice["index"])
    return [choice["text"] for choice in choices]


def stranger(source: random.Random) -> dict[str, Any]:
    prompt = source.choice(SUBJECTS) * source.randint(1, 6)
    length, temperature = source.randint(1, 24), source.choice([0, 1.0])
    return {"prompt": prompt, "n": 1, "max_tokens": length, "temperature": temperature}


async def repetition(
    client: httpx.AsyncClient, ranks: Ranks, source: random.Random, cut: bool
) -> list[list[str]]:
    """The texts of ASKED among strangers; with `cut` the epoch is lost in between."""
    company = [
        asyncio.create_task(ask(client, stranger(source), source.uniform(0, 0.3)))
        for _ in range(source.randint(0, 8))
    ]
    asked = [asyncio.create_task(ask(client, body, source.uniform(0, 0.2))) for body in ASKED]
    if cut:
        await asyncio.sleep(source.uniform(0.1, 0.4))
        assert ranks.network.cut() > 0
    texts = await asyncio.gather(*asked)
    await asyncio.gather(*company)
    return list(texts)


def test_one_text(ranks: Ranks) -> None:
    source = random.Random(5)

    async def work() -> None:
        async with httpx.AsyncClient(base_url=ranks.group.url, timeout=120) as client:
            alone = [await ask(client, body) for body in ASKED]
            assert len({text for texts in alone for text in texts}) == 4 * len(ASKED)
            epoch = ranks.group.topology()["epoch"]
            cuts = 0
            for number in range(examples(REPETITIONS)):
                cut = number % CUT_EVERY == 1
                cuts += cut
                assert await repetition(client, ranks, source, cut) == alone
            assert ranks.group.topology()["epoch"] >= epoch + cuts

    asyncio.run(work())
