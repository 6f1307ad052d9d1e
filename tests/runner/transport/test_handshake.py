from __future__ import annotations

import asyncio
import random
import socket
from dataclasses import replace

import pytest

from runner.errors import ProtocolError
from runner.transport.frames import VERSION, Epoch
from runner.transport.handshake import (
    DIFFERING_PROOF,
    Hello,
    Refused,
    Role,
    accept_handshake,
    dial_handshake,
    differing_specs,
)

TOKEN = b"a token of at least 16 bytes"
HELLO = Hello(Role.DATA, 3, Epoch(2**64 - 1, 9), "ab" * 32)


async def shake(
    dialer_token: bytes = TOKEN,
    listener_token: bytes = TOKEN,
    refusal: str = "",
    version: int = VERSION,
) -> list[Hello | BaseException | None]:
    """What the dialer and the listener come to."""
    left, right = socket.socketpair()
    for end in (left, right):
        end.setblocking(False)
    try:
        async with asyncio.timeout(60):
            ends = await asyncio.gather(
                dial_handshake(left, dialer_token, replace(HELLO, version=version)),
                accept_handshake(right, listener_token, lambda _: refusal),
                return_exceptions=True,
            )
            return [*ends]
    finally:
        left.close()
        right.close()


def test_both_ends_agree() -> None:
    assert asyncio.run(shake()) == [None, HELLO]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dialer_token": b"another token of 16 bytes"}, DIFFERING_PROOF),
        ({"refusal": "epoch 1 is over"}, "epoch 1 is over"),
        ({"version": 1}, "the wire versions differ: 1 dials 5; update both"),
    ],
)
def test_both_ends_are_told_why_not(change: dict[str, object], sentence: str) -> None:
    dialer, listener = asyncio.run(shake(**change))  # type: ignore[arg-type]
    assert isinstance(dialer, Refused)
    assert isinstance(listener, Refused)
    assert str(dialer) == str(listener) == sentence


def test_nothing_is_judged_before_the_proof() -> None:
    judged: list[Hello] = []

    async def run() -> None:
        left, right = socket.socketpair()
        for end in (left, right):
            end.setblocking(False)
        loop = asyncio.get_running_loop()

        def judge(hello: Hello) -> str:
            judged.append(hello)
            return ""

        accepting = asyncio.create_task(accept_handshake(right, TOKEN, judge))
        await loop.sock_sendall(left, HELLO.encode(bytes(32)) + bytes(32))
        with pytest.raises(Refused, match=DIFFERING_PROOF):
            await accepting
        left.close()
        right.close()

    asyncio.run(run())
    assert judged == []


def test_mutated_hellos_are_protocol_errors() -> None:
    async def run() -> int:
        chance = random.Random(5)
        refused = 0
        for _ in range(3000):
            left, right = socket.socketpair()
            right.setblocking(False)
            greeting = bytearray(HELLO.encode(chance.randbytes(32)))
            for _ in range(chance.randint(1, 4)):
                greeting[chance.randrange(len(greeting))] = chance.randrange(256)
            left.send(bytes(greeting[: chance.choice((20, len(greeting)))]) + bytes(32))
            left.shutdown(socket.SHUT_WR)
            try:
                await accept_handshake(right, TOKEN, lambda _: "")
            except ProtocolError:
                refused += 1
            left.close()
            right.close()
        return refused

    assert asyncio.run(run()) == 3000


def test_specs_that_differ_are_named() -> None:
    assert differing_specs(HELLO, HELLO.spec_hash) == ""
    sentence = "the specs differ: abababababab dials cdcdcdcdcdcd"
    assert differing_specs(HELLO, "cd" * 32) == sentence
