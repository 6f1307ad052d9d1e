"""How long a request waits, how often it is asked again, and when it is given up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from contract.carry import FIELD, MOST_FRUITLESS
from tests.web.carrying_client import KINDS, Client, Refused, with_client
from web.answer import UpstreamError
from web.errors import ApiError, error_body
from web.events import DONE


@pytest.mark.parametrize("kind", ["stream", "whole"])
def test_three_carries_without_a_new_id_are_the_end(kind: str) -> None:
    async def work(client: Client) -> None:
        service = client.service
        service.instead = lambda _number, _document: service.told()[0]
        with pytest.raises(ApiError) as ended:
            await client.ask(kind)
        assert ended.value.status == 502
        assert [body.get(FIELD, {}).get("fruitless") for body in service.asked] == [None, 1, 2, 3]
        assert [headers.get("x-asked-again") for headers in service.headers] == [None, *"111"]
        assert (client.count("given_up"), client.count("fruitless")) == (1, MOST_FRUITLESS)

    with_client(work, chunked=False)


def test_a_new_id_makes_the_next_carry_the_first_one() -> None:
    async def work(client: Client) -> None:
        unbroken = await client.ask("stream")
        service = client.service
        service.asked.clear()

        def dies_twice_a_token(number: int, document: dict[str, Any]) -> bytes | None:
            pieces = service.told(document)
            if number % 2:
                return pieces[0]
            return b"".join(pieces[:3]) if len(pieces) > 5 else None

        service.instead = dies_twice_a_token
        assert await client.ask("stream") == unbroken
        found = [body[FIELD]["fruitless"] for body in service.asked[1:]]
        assert found == [1] + [1, 2] * (len(found) // 2)
        assert len(found) > 2 * MOST_FRUITLESS

    with_client(work, chunked=False, tokens=5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_taken_waits_to_its_deadline(kind: str) -> None:
    async def work(client: Client) -> None:
        client.service.cuts = [300]
        client.service.ready = False
        with pytest.raises(ApiError) as ended:
            await client.ask(kind)
        assert ended.value.status == 504
        assert len(client.service.asked) == 1

    with_client(work, deadline_s=1.5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_nobody_has_taken_waits_for_so_long_only(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("web.carried_request.PATIENCE_S", 1.0)
    refusal = (503, error_body(503, "not yet", code="not_serving"))

    async def work(client: Client) -> None:
        client.service.instead = lambda _number, _document: refusal
        with pytest.raises(Refused) as refused:
            await client.ask(kind)
        assert (refused.value.status, refused.value.document) == refusal
        assert 1 < len(client.service.asked) < 8
        client.service.instead = lambda number, _document: refusal if number % 2 else None
        assert await client.ask(kind)

    with_client(work)


def test_who_cannot_be_reached_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("web.carried_request.PATIENCE_S", 0.5)

    async def work(client: Client) -> None:
        await client.service.__aexit__()
        with pytest.raises(UpstreamError) as failed:
            await client.ask("stream")
        assert (failed.value.status, failed.value.headers) == (503, {"Retry-After": "1"})

    with_client(work)


def test_a_full_queue_is_a_refusal_at_first_and_waited_for_on_the_way() -> None:
    full = (429, error_body(429, "full", code="engine_full"))

    async def work(client: Client) -> None:
        unbroken = await client.ask("stream")
        client.service.instead = lambda number, _document: full if number in (2, 4) else None
        with pytest.raises(Refused) as refused:
            await client.ask("stream")
        assert refused.value.status == 429
        client.service.cuts = [500]
        assert await client.ask("stream") == unbroken
        assert len(client.service.asked) == 5

    with_client(work)


@pytest.mark.parametrize("kind", KINDS)
def test_who_tells_ids_and_falls_silent_is_cut_off(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a host that is gone: no reset says so."""
    monkeypatch.setattr("web.carried_request.SILENCE_S", 0.5)

    async def work(client: Client) -> None:
        unbroken = await client.ask(kind)
        service = client.service
        service.hangs_after = 600
        asking = asyncio.create_task(client.ask(kind))
        while len(service.asked) < 2:  # noqa: ASYNC110 (of a server)
            await asyncio.sleep(0.01)
        service.hangs_after = None
        assert await asking == unbroken
        assert service.asked[2][FIELD]["ids"] != [[], []]
        while service.left < 1:  # noqa: ASYNC110 (of a server)
            await asyncio.sleep(0.01)

    with_client(work)


def test_who_knows_no_ids_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("web.carried_request.SILENCE_S", 0.1)

    async def work(client: Client) -> None:
        client.service.knows_ids = False
        client.service.pause_s = 0.2
        assert (await client.ask("stream")).endswith(DONE)
        assert len(client.service.asked) == 1

    with_client(work)
