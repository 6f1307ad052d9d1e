"""Blocks by the names of their models, and what becomes of those that go."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from contract.specs import BlockSpec
from inference_server.blocks.replica import Replica
from inference_server.blocks.table import BlockTable
from inference_server.pipeline import PipelineFeed
from tests.web.small_upstream import MODEL, SmallUpstream
from web import remembered
from web.errors import ApiError
from web.events import ADMITTED

OTHER_MODEL = "another/model"


@pytest.fixture
def upstream() -> Iterator[SmallUpstream]:
    with SmallUpstream() as upstream:
        yield upstream


async def found(table: BlockTable, name: str) -> str | int:
    """The block's id, or the status of the refusal."""
    try:
        return (await table.by_model(name)).block_id
    except ApiError as error:
        return error.status


def test_the_names_follow_an_edit_of_the_model_and_outlast_an_outage(
    upstream: SmallUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "MAX_AGE_S", 0.05)

    async def work() -> None:
        table = BlockTable([BlockSpec("block", upstream.url)], 5.0)
        assert await found(table, MODEL) == "block"
        upstream.model = OTHER_MODEL
        await asyncio.sleep(0.1)
        assert [await found(table, name) for name in (OTHER_MODEL, MODEL)] == ["block", 404]
        await asyncio.to_thread(upstream.stop)
        table.replace([BlockSpec("block", upstream.url, replica_urls=())])
        await asyncio.sleep(0.1)
        assert await found(table, OTHER_MODEL) == "block"
        await table.close()

    asyncio.run(work())


def test_a_name_may_be_that_of_a_block_that_has_never_answered(upstream: SmallUpstream) -> None:
    async def work() -> None:
        table = BlockTable([BlockSpec("block", upstream.url), BlockSpec("none", "")], 5.0)
        assert await found(table, MODEL) == "block"
        assert await found(table, OTHER_MODEL) == 503
        table.replace([BlockSpec("block", upstream.url)])
        assert await found(table, OTHER_MODEL) == 404
        await table.close()

    asyncio.run(work())


def test_who_asks_a_replica_that_goes_is_told_so() -> None:
    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            replica = Replica("block", f"http://127.0.0.1:{silent.getsockname()[1]}", 5.0)
            asking = [asyncio.create_task(replica.not_ready()) for _ in range(3)]
            await asyncio.sleep(0.2)
            await replica.close()
            assert all(await asyncio.gather(*asking))
        assert "no longer" in await replica.not_ready()
        for ask in (replica.upstream.get("/x"), replica.upstream.ask("/x", {}, {}, 0.0)):
            with pytest.raises(ApiError, match="cannot be reached") as raised:
                await ask
            assert raised.value.status == 503

    asyncio.run(work())


def test_watchers_of_a_block_that_goes_are_told_and_let_go(upstream: SmallUpstream) -> None:
    async def work() -> list[bytes]:
        table = BlockTable([BlockSpec("block", upstream.url)], 5.0)
        feed = PipelineFeed(table.by_id("block"))
        events = feed.watch()
        assert await anext(events) == ADMITTED
        told = [await anext(events)]
        table.replace([])
        async with asyncio.timeout(60):
            return told + [event async for event in events]

    first, *_, last = asyncio.run(work())
    assert b"/topology/events with HTTP 404" in first
    assert b"block block is gone" in last
