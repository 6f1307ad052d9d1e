"""Carrying a request over the deaths of who answers it, by real connections of this machine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from contract.carry import FIELD, LINE, MOST_FRUITLESS
from tests.web.carrying_service import CarryingService, token_events
from web.answer import UpstreamError
from web.carry import Carrier
from web.errors import ApiError, error_body
from web.events import event
from web.upstream import Upstream

PATH = "/v1/chat/completions"
DEADLINE_S = 20.0


class Client:
    """Whoever holds the client's connection, in front of one service."""

    def __init__(self, service: CarryingService, deadline_s: float = DEADLINE_S) -> None:
        self.service = service
        self.registry = CollectorRegistry()
        self._carrier = Carrier(self.registry)
        self._upstream = Upstream("the service", service.url, deadline_s=deadline_s)

    async def ask(self, kind: str, **document: Any) -> bytes:
        """What is passed on of a "stream", its "lines" too, or "whole"."""
        document = {"stream": kind != "whole", "model": "m", **document}
        answer = await self._carrier.ask(
            self._upstream, PATH, document, passes_lines=kind == "lines"
        )
        if answer.events is None:
            if answer.status != 200:
                raise Refused(answer.status, answer.document())
            return answer.content
        return b"".join([piece async for piece in answer.events])

    def count(self, outcome: str) -> float | None:
        return self.registry.get_sample_value("request_carries_total", {"outcome": outcome})

    async def close(self) -> None:
        await self._upstream.close()


class Refused(Exception):
    def __init__(self, status: int, document: dict[str, Any]) -> None:
        super().__init__(status, document)
        self.status, self.document = status, document


def with_client(
    work: Callable[[Client], Awaitable[None]], deadline_s: float = DEADLINE_S, **service: Any
) -> None:
    async def run() -> None:
        async with CarryingService(**service) as small:
            client = Client(small, deadline_s)
            try:
                await work(client)
            finally:
                await client.close()

    asyncio.run(run())


KINDS = ["stream", "lines", "whole"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunked", [True, False])
def test_an_answer_cut_at_any_byte_is_the_unbroken_one(kind: str, chunked: bool) -> None:
    async def work(client: Client) -> None:
        unbroken = await client.ask(kind)
        service = client.service
        assert (LINE in unbroken) == (kind == "lines")
        for cut in range(service.sizes[0]):
            service.asked.clear()
            service.cuts = [cut]
            assert await client.ask(kind) == unbroken
            # Nobody notices that the last bytes of HTTP's own are missing.
            assert len(service.asked) == 2 or cut > service.sizes[0] - 20
        assert client.count("given_up") == client.count("fruitless") == 0
        assert client.count("went_on")

    with_client(work, chunked=chunked, tokens=2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_cut_again_and_again_is_the_unbroken_one(kind: str) -> None:
    async def work(client: Client) -> None:
        unbroken = await client.ask(kind)
        whole = client.service.sizes[0]
        draw = random.Random(5)
        for _ in range(50):
            client.service.cuts = [draw.randrange(whole * 9 // 10) for _ in range(3)]
            assert await client.ask(kind) == unbroken
        assert client.count("given_up") == 0

    with_client(work, choices=3, tokens=5)


@pytest.mark.parametrize("kind", ["stream", "whole"])
def test_three_carries_without_a_new_id_are_the_end(kind: str) -> None:
    async def work(client: Client) -> None:
        service = client.service
        service.instead = lambda _number, _document: service_beginning(service)
        with pytest.raises(ApiError) as ended:
            await client.ask(kind)
        assert ended.value.status == 502
        assert [body.get(FIELD, {}).get("fruitless") for body in service.asked] == [None, 1, 2, 3]
        assert [headers.get("x-asked-again") for headers in service.headers] == [None, *"111"]
        assert (client.count("given_up"), client.count("fruitless")) == (1, MOST_FRUITLESS)

    with_client(work, chunked=False)


def service_beginning(service: CarryingService) -> bytes:
    """An answer that ends when it has begun."""
    return next(service._pieces({"x-carry": "ids"}, {"stream": True}))


def test_a_new_id_makes_the_next_carry_the_first_one() -> None:
    async def work(client: Client) -> None:
        unbroken = await client.ask("stream")
        service = client.service
        service.asked.clear()

        def dies_twice_a_token(number: int, document: dict[str, Any]) -> bytes | None:
            pieces = list(service._pieces({"x-carry": "ids"}, document))
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


def test_another_model_ends_a_carried_request() -> None:
    changed = (409, error_body(409, "another one", code="model_changed"))

    async def work(client: Client) -> None:
        client.service.instead = lambda number, _document: changed if number % 2 == 0 else None
        client.service.cuts = [400, 400]
        with pytest.raises(ApiError) as ended:
            await client.ask("stream")
        assert ended.value.body == changed[1]
        with pytest.raises(Refused) as refused:
            await client.ask("whole")
        assert (refused.value.status, refused.value.document) == changed
        assert client.count("refused") == 2

    with_client(work)


@pytest.mark.parametrize(
    ("status", "code"),
    [(504, "deadline_exceeded"), (500, "request_ends_the_group"), (500, "internal")],
)
def test_other_errors_end_an_answer_as_they_are(status: int, code: str) -> None:
    error = error_body(status, "told to", code=code)

    async def work(client: Client) -> None:
        service = client.service
        ending = event(error)
        service.instead = lambda _number, _document: service_beginning(service) + ending
        assert await client.ask("stream") == ending
        with pytest.raises(Refused) as refused:
            await client.ask("whole")
        assert (refused.value.status, refused.value.document) == (status, error)
        assert len(service.asked) == 2

    with_client(work)


def test_an_error_that_passes_is_carried_over() -> None:
    passing = event(error_body(503, "gone", code="not_serving"))

    async def work(client: Client) -> None:
        unbroken = await client.ask("stream")
        service = client.service
        first = b"".join(list(service._pieces({"x-carry": "ids"}, {"stream": True}))[:3])
        service.instead = lambda number, _document: first + passing if number == 2 else None
        assert await client.ask("stream") == unbroken
        assert service.asked[2][FIELD]["ids"] == [[7], []]

    with_client(work)


@pytest.mark.parametrize("status", [502, 503])
def test_a_gateways_own_error_passes_but_not_that_of_a_tier_which_waited(status: int) -> None:
    async def work(client: Client) -> None:
        client.service.instead = lambda number, _document: (
            (status, {"a": "gateway's"}) if number == 1 else None
        )
        assert await client.ask("stream")
        own = (502, error_body(502, "it died each time", code="upstream_broke_off"))
        client.service.instead = lambda _number, _document: own
        with pytest.raises(Refused):
            await client.ask("stream")
        assert len(client.service.asked) == 3

    with_client(work)


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


@pytest.mark.parametrize(
    "lines",
    [b': carry {"index":0,"ids":[1]}\n\n', b": carry {}\n\n", b': carry {"index":9,"ids":[1]}\n\n'],
)
def test_lines_against_the_contract_end_an_answer(lines: bytes) -> None:
    async def work(client: Client) -> None:
        service = client.service
        begins = service_beginning(service) if b"9" in lines else b""
        service.instead = lambda _number, _document: begins + lines
        for kind in KINDS:
            with pytest.raises(ApiError) as ended:
                await client.ask(kind)
            assert (ended.value.status, ended.value.body["error"]["code"]) == (502, "bad_answer")

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
        answer = await client._carrier.ask(client._upstream, PATH, {"stream": True})
        assert answer.events is not None
        assert answer.close is not None
        async for piece in answer.events:
            if piece:
                break
        await answer.close()
        whole = asyncio.create_task(client.ask("whole"))
        async with asyncio.timeout(5):
            while len(service.asked) < 2:  # noqa: ASYNC110 (of a server)
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            whole.cancel()
            while service.left < 2:  # noqa: ASYNC110 (of a server)
                await asyncio.sleep(0.01)

    with_client(work)
