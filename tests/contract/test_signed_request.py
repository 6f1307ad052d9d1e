from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.signed_request import (
    MOST_NONCES,
    NONCE_BYTES,
    SCHEME,
    TOLERANCE_S,
    SignatureRefused,
    Verifier,
    sign,
)

KEY = b"a key of 32 bytes for the tests."
BEGAN = 1_790_000_000.0
_numbers = count(1)


class Clock:
    def __init__(self) -> None:
        self.now = BEGAN

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(clock: Clock) -> Verifier:
    made = Verifier(KEY, clock)
    clock.now += 1
    return made


def signed(at: float, *, key: bytes = KEY, path: str = "/group/spec", body: bytes = b"{}") -> str:
    nonce = next(_numbers).to_bytes(NONCE_BYTES, "big")
    return sign(key, "PUT", path, body, at, nonce)


def take(verifier: Verifier, header: str, path: str = "/group/spec", body: bytes = b"{}") -> None:
    verifier.take(header, "PUT", path, body)


def test_a_signed_request_is_taken_once(verifier: Verifier, clock: Clock) -> None:
    header = signed(clock.now)
    take(verifier, header)
    with pytest.raises(SignatureRefused, match="taken before"):
        take(verifier, header)
    take(verifier, signed(clock.now))  # the same request, signed anew


@pytest.mark.parametrize("change", ["method", "path", "query", "body", "key", "time", "nonce"])
def test_what_is_signed_is_all_of_it(verifier: Verifier, clock: Clock, change: str) -> None:
    header = signed(clock.now, key=b"another key" if change == "key" else KEY)
    method = "POST" if change == "method" else "PUT"
    path = {"path": "/group/spec2", "query": "/group/spec?x=1"}.get(change, "/group/spec")
    body = b"{} " if change == "body" else b"{}"
    if change == "time":
        header = header.replace(f"time={clock.now:.3f}", f"time={clock.now + 1:.3f}")
    if change == "nonce":
        header = header.replace("nonce=0", "nonce=f")
    with pytest.raises(SignatureRefused, match="not that of this request"):
        verifier.take(header, method, path, body)


def test_fields_cannot_be_cut_in_another_way(verifier: Verifier, clock: Clock) -> None:
    header = sign(KEY, "PUT", "/group/spec", b"{}", clock.now, bytes(NONCE_BYTES))
    for method, path, body in (
        ("PUT/", "group/spec", b"{}"),
        ("PUT", "/group/spec{", b"}"),
        ("", "PUT/group/spec", b"{}"),
    ):
        with pytest.raises(SignatureRefused):
            verifier.take(header, method, path, body)


@pytest.mark.parametrize(("off_s", "told"), [(61, "ahead of"), (-61, "behind")])
def test_clocks_may_differ_so_much(
    verifier: Verifier, clock: Clock, off_s: float, told: str
) -> None:
    clock.now += 1000
    take(verifier, signed(clock.now + off_s * TOLERANCE_S / 61.1))
    with pytest.raises(SignatureRefused, match=f"61 s {told} this clock"):
        take(verifier, signed(clock.now + off_s))


def test_what_was_signed_for_the_process_before_is_refused(
    verifier: Verifier, clock: Clock
) -> None:
    header = signed(clock.now)
    take(verifier, header)
    clock.now += 5
    again = Verifier(KEY, clock)
    with pytest.raises(SignatureRefused, match="sign anew"):
        take(again, header)


def test_many_nonces_take_bounded_memory_and_none_comes_back(
    verifier: Verifier, clock: Clock
) -> None:
    headers = []
    for _ in range(2 * MOST_NONCES):
        clock.now += 0.01
        headers.append(signed(clock.now))
        take(verifier, headers[-1])
    assert len(verifier._taken) == len(verifier._by_time) == MOST_NONCES
    for header in headers:
        with pytest.raises(SignatureRefused):
            take(verifier, header)
    take(verifier, signed(clock.now))


def test_a_clock_that_is_set_back_opens_nothing(verifier: Verifier, clock: Clock) -> None:
    header = signed(clock.now)
    take(verifier, header)
    for jump in (3600, -3600):
        clock.now += jump
        with pytest.raises(SignatureRefused):
            take(verifier, header)


@given(header=st.text(max_size=200) | st.from_regex(rf"{SCHEME} .*", fullmatch=True))
def test_whatever_comes_is_refused(header: str) -> None:
    with pytest.raises(SignatureRefused):
        Verifier(KEY, lambda: BEGAN).take(header, "PUT", "/group/spec", b"{}")


@pytest.mark.parametrize("end", ["\n", " ", ", more=1"])
def test_nothing_may_stand_behind_it(verifier: Verifier, clock: Clock, end: str) -> None:
    with pytest.raises(SignatureRefused, match="must be"):
        take(verifier, signed(clock.now) + end)
