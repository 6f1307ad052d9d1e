"""Whose turn is next, where several domains wait for few places."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from runner.master.engine.requests import GenerationRequest, OpenRequest, RequestLedger
from runner.master.engine.waiting_room import WaitingRoom
from runner.sampling_parameters import SamplingParameters

LOADS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40), min_size=1)


def request(domain: str) -> GenerationRequest:
    return GenerationRequest((1,), 5, SamplingParameters(seed=1), domain=domain)


def entered(ledger: RequestLedger, domain: str) -> OpenRequest:
    return ledger.add(request(domain), lambda _event: None)


@given(LOADS, st.randoms(use_true_random=False))
def test_each_domain_gets_places_in_turn(loads: dict[str, int], dice: object) -> None:
    ledger, room = RequestLedger(), WaitingRoom()
    arrivals = [domain for domain, count in loads.items() for _ in range(count)]
    dice.shuffle(arrivals)  # type: ignore[attr-defined]
    for domain in arrivals:
        room.add(entered(ledger, domain))
    taken: list[OpenRequest] = []
    while room:
        waiting = Counter(one.domain for one in room)
        expected = room.next
        taken.append(room.take())
        assert taken[-1] is expected
        # Of those who still wait nobody is more than one turn behind.
        served = Counter(one.domain for one in taken)
        behind = [served[domain] for domain, left in waiting.items() if left > 1]
        assert max(served.values()) >= max(behind, default=0)
        assert not behind or max(behind) - min(behind) <= 1
    assert len(taken) == len(arrivals)
    for domain in loads:
        numbers = [one.number for one in taken if one.domain == domain]
        assert numbers == sorted(numbers)


def test_a_lone_domain_is_served_as_it_comes() -> None:
    ledger, room = RequestLedger(), WaitingRoom()
    entries = [entered(ledger, "a") for _ in range(5)]
    for entry in entries:
        room.add(entry)
    room.remove(entries[2])
    assert [room.take() for _ in range(len(room))] == [*entries[:2], *entries[3:]]
    assert not room


def test_who_had_a_place_keeps_it_after_a_loss() -> None:
    ledger, room = RequestLedger(), WaitingRoom()
    entries = [entered(ledger, domain) for domain in "aaab"]
    entries[1].had_place = entries[3].had_place = True
    entries[2].losses = 2
    for entry in ledger.in_turn():
        room.add(entry)
    assert list(room) == [entries[2], entries[1], entries[3], entries[0]]
    room.remove(entries[1])
    assert [room.take() for _ in range(3)] == [entries[2], entries[3], entries[0]]
