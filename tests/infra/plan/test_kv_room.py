"""How many requests fit at once: the rank with the fewest tokens decides."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infra.plan.kv_room import LENGTHS, kv_room
from infra.plan.layers import RankPlan


def ranks(*tokens: int | None) -> list[RankPlan]:
    return [
        RankPlan(rank, (rank, rank + 1), 1, 1, count, count, 0.5)
        for rank, count in enumerate(tokens)
    ]


def test_the_smallest_rank_decides() -> None:
    room = kv_room(ranks(50_000, 20_000, 30_000), None)
    assert room is not None
    assert (room.rank, room.tokens) == (1, 20_000)
    assert room.requests == ((9, 2048), (2, 8192))
    assert room.unknown == ()


def test_a_rank_whose_memory_is_not_known_is_named() -> None:
    room = kv_room(ranks(None, 20_000, None), None)
    assert room is not None
    assert (room.rank, room.unknown) == (1, (0, 2))
    assert kv_room(ranks(None, None), None) is None


def test_no_request_is_longer_than_requests_may_be() -> None:
    for longest, lengths in ((4096, [2048, 4096]), (1024, [1024]), (2048, [2048])):
        room = kv_room(ranks(20_000), longest)
        assert room is not None
        assert [length for _, length in room.requests] == lengths


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=6))
def test_what_is_said_to_fit_fits_and_one_more_does_not(tokens: list[int]) -> None:
    room = kv_room(ranks(*tokens), None)
    assert room is not None
    assert tuple(length for _, length in room.requests) == LENGTHS
    for count, length in room.requests:
        assert all(count * length <= held for held in tokens)
        assert any((count + 1) * length > held for held in tokens)
