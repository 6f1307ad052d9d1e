"""What is held back of a stream until it says something, and what follows one that breaks off."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from web.answer import Answer, Opening, UpstreamError, or_another, unavailable
from web.errors import ApiError
from web.events import Events, event

ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
TEXT = event({"choices": [{"index": 0, "delta": {"content": "a"}}]})
COMMENT = b": keep-alive\n\n"


def broken(*, delivered: bool = False) -> UpstreamError:
    error = UpstreamError(502, "broke off", code="upstream_broke_off")
    error.delivered = delivered
    return error


def streamed(*pieces: bytes | ApiError) -> Answer:
    async def events() -> Events:
        for piece in pieces:
            if isinstance(piece, ApiError):
                raise piece
            yield piece

    return Answer(200, {}, events=events())


def all_events(answer: Answer, again: Any) -> bytes:
    async def told() -> bytes:
        found = or_another(answer, again, "it").events
        assert found is not None
        return b"".join([piece async for piece in found])

    return asyncio.run(told())


def test_comments_pass_before_anything_is_said_and_the_role_waits() -> None:
    opening = Opening()
    assert opening.push(COMMENT) == COMMENT
    assert opening.push(COMMENT + ROLE + COMMENT) == COMMENT * 2
    assert not opening.over
    assert opening.push(TEXT + COMMENT) == ROLE + TEXT + COMMENT
    assert opening.over
    assert opening.push(ROLE) == ROLE
    assert opening.end() == b""


def test_another_answer_follows_one_that_delivered_nothing() -> None:
    async def again(error: UpstreamError) -> Answer:
        assert str(error) == "broke off"
        return streamed(ROLE + TEXT)

    assert all_events(streamed(b"", COMMENT, broken()), again) == COMMENT + ROLE + TEXT


def test_nothing_follows_one_that_delivered_something() -> None:
    async def again(_: UpstreamError) -> Answer:
        raise AssertionError

    with pytest.raises(UpstreamError, match="broke off"):
        all_events(streamed(TEXT, broken(delivered=True)), again)


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [(b'{"error": {"message": "full", "code": "engine_full"}}', 429, "engine_full"),
     (b"<html>", 502, "bad_answer")],
)  # fmt: skip
def test_a_refusal_in_its_place_is_an_error_with_the_same_body(
    content: bytes, status: int, code: str
) -> None:
    async def again(_: UpstreamError) -> Answer:
        return Answer(429, {}, content)

    with pytest.raises(ApiError) as refused:
        all_events(streamed(broken()), again)
    assert refused.value.status == status
    assert refused.value.body["error"]["code"] == code


def test_what_would_have_been_a_503_is_known_in_a_stream() -> None:
    body = ApiError(503, "forming", code="not_serving").body
    found = unavailable(COMMENT + event(body))
    assert found is not None
    assert (found.status, found.body) == (503, body)
    other = ApiError(500, "service_unavailable_error").body
    text = {"choices": [{"text": '"service_unavailable_error"'}]}
    for events in (TEXT, event(other), event(text), b'data: "service_unavailable_error"', b""):
        assert unavailable(events) is None
