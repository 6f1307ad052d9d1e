"""Carrying a request over the deaths of who answers it, by real connections of this machine."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from contract.carry import FIELD, LINE, MOST_FRUITLESS
from tests.lanes import examples
from tests.web.carrying_client import KINDS, Client, with_client
from tests.web.carrying_service import token_events
from web.answer import UpstreamError
from web.errors import ApiError


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunked", [True, False])
def test_an_answer_cut_at_any_byte_is_the_unbroken_one(kind: str, chunked: bool) -> None:
    async def work(client: Client) -> None:
        unbroken = await client.ask(kind)
        service = client.service
        assert (LINE in unbroken) == (kind == "lines")
        # Each kind at other bytes; `make test-all` at every one.
        stride = 1 if examples(1) > 1 else 7
        for cut in range((KINDS.index(kind) + 3 * chunked) % stride, service.sizes[0], stride):
            service.asked.clear()
            service.cuts = [cut]
            assert await client.ask(kind) == unbroken
            # Nobody notices that the last bytes of HTTP's own are missing.
            assert len(service.asked) == 2 or cut > service.sizes[0] - 20
        assert client.count("given_up") == client.count("fruitless") == 0
        assert client.count("went_on")

    with_client(work, chunked=chunked, tokens=2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_cut_again_and_again_is_the_unbroken_one(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("web.carried_request.PAUSE_S", 0.01)

    async def work(client: Client) -> None:
        unbroken = await client.ask(kind)
        whole = client.service.sizes[0]
        draw = random.Random(5)
        for _ in range(examples(15)):
            client.service.cuts = [draw.randrange(whole * 9 // 10) for _ in range(3)]
            assert await client.ask(kind) == unbroken
        assert client.count("given_up") == 0

    with_client(work, choices=3, tokens=5)


def test_a_caller_that_carries_is_gone_on_from_where_it_was() -> None:
    async def work(client: Client) -> None:
        unbroken = await client.ask("stream")
        client.service.cuts = [600]
        await client.ask("stream")
        told = client.service.asked[-1][FIELD]
        rest = await client.ask("lines", **{FIELD: told})
        assert rest.startswith(LINE + b'{"id"')
        without_lines = b"".join(
            one + b"\n\n" for one in rest.split(b"\n\n") if one and not one.startswith(LINE)
        )
        assert unbroken.endswith(without_lines)
        assert len(without_lines) < len(unbroken)
        # Its fruitless carries count here too.
        last = {**told, "fruitless": MOST_FRUITLESS}
        client.service.asked.clear()
        client.service.cuts = [100] * 9
        with pytest.raises(UpstreamError):
            await client.ask("lines", **{FIELD: last})
        assert [body[FIELD] for body in client.service.asked] == [last]

    with_client(work)


@pytest.mark.parametrize("value", [5, {}, {"ids": []}, "x" * 10_000])
def test_a_carry_that_is_none_is_refused_by_name(value: Any) -> None:
    async def work(client: Client) -> None:
        with pytest.raises(ApiError, match=FIELD) as refused:
            await client.ask("stream", **{FIELD: value})
        assert refused.value.status == 400
        assert client.service.asked == []

    with_client(work)


def test_a_service_that_knows_no_ids_is_asked_again_for_what_delivered_nothing() -> None:
    async def work(client: Client) -> None:
        service = client.service
        service.knows_ids = False
        unbroken = await client.ask("stream")
        role = token_events(0, 0).split(b"\n\n")[0]
        said = service.sizes[0] - len(unbroken) + len(role)
        service.cuts = [said, 40]
        assert await client.ask("stream") == unbroken
        assert len(service.asked) == 4
        assert all(FIELD not in body for body in service.asked)
        service.cuts = [service.sizes[0] - 200]
        with pytest.raises(UpstreamError) as died:
            await client.ask("stream")
        assert died.value.body["error"]["code"] == "upstream_died_mid_stream"
        assert len(service.asked) == 5

    with_client(work)


def test_events_without_a_beginning_never_go_behind_what_was_delivered() -> None:
    async def work(client: Client) -> None:
        service = client.service

        def forgets(number: int, _document: dict[str, Any]) -> bytes | None:
            service.knows_ids = number == 1
            return None

        service.instead = forgets
        service.cuts = [600]
        with pytest.raises(ApiError, match="without a beginning"):
            await client.ask("stream")

    with_client(work)


def test_who_stops_reading_closes_the_connection_behind() -> None:
    async def work(client: Client) -> None:
        service = client.service
        service.hangs_after = 700
        answer = await client.answer("stream")
        assert answer.events is not None
        assert answer.close is not None
        async for piece in answer.events:
            if piece:
                break
        await answer.close()
        whole = asyncio.create_task(client.ask("whole"))
        async with asyncio.timeout(60):
            while len(service.asked) < 2:  # noqa: ASYNC110 (of a server)
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            whole.cancel()
            while service.left < 2:  # noqa: ASYNC110 (of a server)
                await asyncio.sleep(0.01)

    with_client(work)
