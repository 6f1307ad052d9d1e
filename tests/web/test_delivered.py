"""What is held of an answer, and what is passed on of it."""

from __future__ import annotations

import pytest

from contract.carry import Advance, Beginning, Carry, line
from web.answer import UpstreamError
from web.delivered import Delivered
from web.errors import ApiError
from web.events import DONE, event

BEGINNING = Beginning("answer-1", 1_790_000_000, 7, "c0ffee", "digest", 2)
ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
TEXT = event({"choices": [{"index": 0, "delta": {"content": "a"}}]})
COMMENT = b": keep-alive\n\n"


def pushed(delivered: Delivered, some: bytes) -> bytes:
    return b"".join(map(delivered.push, delivered.whole_ones(some)))


@pytest.fixture
def delivered() -> Delivered:
    return Delivered(None, passes_lines=False, whole=False)


def test_events_wait_for_what_confirms_them_and_comments_do_not(delivered: Delivered) -> None:
    assert pushed(delivered, line(BEGINNING) + ROLE + TEXT + COMMENT) == COMMENT
    assert pushed(delivered, line(Advance(0, (3, 4)))) == ROLE + TEXT
    assert pushed(delivered, TEXT) == b""
    assert pushed(delivered, DONE) == TEXT + DONE
    assert delivered.ended


def test_what_was_held_of_a_dead_connection_is_dropped(delivered: Delivered) -> None:
    pushed(delivered, line(BEGINNING) + ROLE + line(Advance(1, (3,))) + TEXT)
    assert delivered.closed() == b""
    assert not delivered.ended
    delivered.fruitless += 1
    assert delivered.carry == Carry(BEGINNING, ((), (3,)), 1)
    delivered.connected()
    assert pushed(delivered, line(BEGINNING) + TEXT + line(Advance(0, (5,)))) == TEXT
    assert (delivered.fruitless, delivered.tokens) == (0, 2)


def test_a_caller_that_carries_gets_the_lines_and_one_beginning() -> None:
    delivered = Delivered(Carry(BEGINNING, ((1,), ()), 1), passes_lines=True, whole=False)
    advance = line(Advance(1, (3,)))
    assert pushed(delivered, line(BEGINNING) + TEXT + advance) == line(BEGINNING) + TEXT + advance
    delivered.connected()
    assert pushed(delivered, line(BEGINNING) + TEXT + advance) == TEXT + advance
    assert delivered.tokens == 3


def test_an_answer_for_one_that_gets_it_whole_is_the_event_before_the_end() -> None:
    delivered = Delivered(None, passes_lines=False, whole=True)
    some = line(BEGINNING) + COMMENT + line(Advance(0, (1,))) + event({"a": "ä"}) + DONE
    pushed(delivered, some)
    assert delivered.ended
    assert delivered.content == '{"a":"ä"}'.encode()


def test_of_a_service_without_ids_the_role_waits_until_something_is_said(
    delivered: Delivered,
) -> None:
    assert pushed(delivered, COMMENT + ROLE + COMMENT) == COMMENT * 2
    assert not delivered.begun
    assert pushed(delivered, TEXT + COMMENT) == ROLE + TEXT + COMMENT
    assert delivered.begun
    assert pushed(delivered, ROLE) == ROLE
    assert delivered.carry is None


@pytest.mark.parametrize(("some", "ended"), [(ROLE, True), (COMMENT, False), (b"", False)])
def test_of_a_service_without_ids_an_end_is_an_end_where_anything_came(
    delivered: Delivered, some: bytes, ended: bool
) -> None:
    pushed(delivered, some)
    assert delivered.closed() == (ROLE if ended else b"")
    assert delivered.ended == ended


def test_a_last_event_without_its_blank_line_counts_only_where_no_ids_are_known(
    delivered: Delivered,
) -> None:
    assert delivered.whole_ones(TEXT + DONE.rstrip()) == [TEXT.rstrip(), DONE.rstrip()]
    assert delivered.whole_ones(b": car") == []
    pushed(delivered, line(BEGINNING))
    assert delivered.whole_ones(TEXT + DONE.rstrip()) == [TEXT.rstrip()]


def test_what_would_have_been_a_503_is_a_loss_until_text_without_ids_was_passed_on(
    delivered: Delivered,
) -> None:
    error = event(ApiError(503, "forming", code="not_serving").body)
    with pytest.raises(UpstreamError, match="forming") as lost:
        pushed(delivered, error)
    assert (lost.value.status, lost.value.at_work) == (503, True)
    pushed(delivered, TEXT)
    assert pushed(delivered, error) == error
    assert delivered.error is not None


@pytest.mark.parametrize(
    "events",
    [
        event(ApiError(500, "service_unavailable_error").body),
        event({"choices": [{"text": '"service_unavailable_error"'}]}),
        b'data: {"error": "service_unavailable_error"\n\n',
        b'data: "service_unavailable_error"\n\n',
    ],
)
def test_what_is_no_503_passes(delivered: Delivered, events: bytes) -> None:
    assert pushed(delivered, events) == events
