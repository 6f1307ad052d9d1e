"""Errors that a request which is carried meets: those that pass, and those that end it."""

from __future__ import annotations

import pytest

from contract.carry import FIELD
from tests.web.carrying_client import KINDS, Client, Refused, with_client
from web.errors import ApiError, error_body
from web.events import event


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
        service.instead = lambda _number, _document: service.told()[0] + ending
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
        first = b"".join(service.told()[:3])
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


@pytest.mark.parametrize(
    "lines",
    [b': carry {"index":0,"ids":[1]}\n\n', b": carry {}\n\n", b': carry {"index":9,"ids":[1]}\n\n'],
)
def test_lines_against_the_contract_end_an_answer(lines: bytes) -> None:
    async def work(client: Client) -> None:
        service = client.service
        begins = service.told()[0] if b"9" in lines else b""
        service.instead = lambda _number, _document: begins + lines
        for kind in KINDS:
            with pytest.raises(ApiError) as ended:
                await client.ask(kind)
            assert (ended.value.status, ended.value.body["error"]["code"]) == (502, "bad_answer")

    with_client(work)
