"""A client's own deadline, through the tiers."""

from __future__ import annotations

import asyncio
import time

import pytest
from prometheus_client import CollectorRegistry

from tests.web.small_upstream import SmallUpstream
from web.carry import Carrier
from web.deadline import HEADER, DeadlineMiddleware, allowed_s, remaining_s
from web.upstream import Upstream


def seen_by_application(value: str | None) -> tuple[float, float] | None:
    """allowed_s(10) and remaining_s(10) in a request with that header; None when refused."""
    seen = None

    async def application(*_: object) -> None:
        nonlocal seen
        seen = allowed_s(10.0), remaining_s(10.0)

    async def send(_: object) -> None:
        pass

    async def run() -> None:
        headers = [] if value is None else [(HEADER.lower().encode(), value.encode())]
        scope = {"type": "http", "headers": headers}
        await DeadlineMiddleware(application)(scope, send, send)  # type: ignore[arg-type]

    asyncio.run(run())
    return seen


def test_a_deadline_shortens_and_never_lengthens() -> None:
    assert seen_by_application(None) == (10, 10)
    assert seen_by_application("60") == (10, 10)
    allowed, left = seen_by_application("2.5") or (0, 0)
    assert allowed == 2.5
    assert 0 < left <= 2.5


@pytest.mark.parametrize("value", ["", "x", "-1", "0", "nan", "inf", "1e99", "\u0662"])
def test_what_is_no_number_of_seconds_never_gets_to_the_application(value: str) -> None:
    assert seen_by_application(value.encode("utf-8").decode("latin-1")) is None


def test_what_is_left_is_sent_on() -> None:
    async def run(upstream: SmallUpstream) -> None:
        asked = Upstream("the upstream", upstream.url, deadline_s=7.0)
        document = {"model": "m", "prompt": "x"}
        await Carrier(CollectorRegistry()).ask(asked, "/v1/completions", document)
        await asked.close()

    with SmallUpstream() as upstream:
        began = time.monotonic()
        asyncio.run(run(upstream))
        assert 7 - (time.monotonic() - began) <= float(upstream.headers[-1][HEADER]) <= 7
