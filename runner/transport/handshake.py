"""The handshake of every connection: both ends prove that they hold the group token.

Four messages of fixed size, then a verdict with a sentence:

    dialer   -> HELLO      role, rank, epoch, spec hash, nonce
    listener -> CHALLENGE  nonce, HMAC-SHA256(token, "listener" + HELLO + nonce)
    dialer   -> PROOF      HMAC-SHA256(token, "dialer" + HELLO + nonce); zeros when the
                           challenge's own code is wrong, so that the listener can log it too
    listener -> VERDICT    accepted, or refused and why

Nothing about the group is told before the proof holds. Authenticated, not encrypted: what follows
on the connection travels in plain text and without codes of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from runner.errors import ProtocolError
from runner.transport.frames import VERSION, Epoch

MASTER_RANK = 0xFFFF
NO_EPOCH = Epoch(0, 0)
NO_SPEC = "00" * 32
_MAGIC = b"SPHS"
_HELLO = struct.Struct("<4sBBHQI32s32s")
_VERDICT = struct.Struct("<BH")
_CODE_BYTES = 32
_MAX_SENTENCE_BYTES = 500
DIFFERING_PROOF = "the group tokens differ"


class Role(IntEnum):
    """What a connection is for: control (stage to master), data (to the next stage), return."""

    CONTROL = 1
    DATA = 2
    RETURN = 3


class Refused(ProtocolError):
    """The listener refused by name, or does not hold our token; the message says which."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Who dials, and for which epoch of which spec (64 hex digits): NO_EPOCH and NO_SPEC for
    control."""

    role: Role
    rank: int
    epoch: Epoch
    spec_hash: str
    version: int = VERSION

    def encode(self, nonce: bytes) -> bytes:
        spec = bytes.fromhex(self.spec_hash)
        return _HELLO.pack(_MAGIC, self.version, self.role, self.rank, *self.epoch, spec, nonce)

    @classmethod
    def decode(cls, data: bytes) -> Hello:
        """Raises ProtocolError for what is not a hello. Its layout is that of every version."""
        magic, version, role, rank, master, counter, spec, _ = _HELLO.unpack(data)
        if magic != _MAGIC:
            raise ProtocolError(f"a hello starts with {magic!r}")
        if role not in set(Role):
            raise ProtocolError(f"role = {role}: must be one of {[int(item) for item in Role]}")
        return cls(Role(role), rank, Epoch(master, counter), spec.hex(), version)


async def dial_handshake(connection: socket.socket, token: bytes, hello: Hello) -> None:
    """Prove ourselves on a non-blocking socket; raises Refused, ProtocolError, OSError."""
    loop = asyncio.get_running_loop()
    greeting = hello.encode(secrets.token_bytes(_CODE_BYTES))
    await loop.sock_sendall(connection, greeting)
    challenge = await _read(connection, 2 * _CODE_BYTES)
    nonce, code = challenge[:_CODE_BYTES], challenge[_CODE_BYTES:]
    genuine = hmac.compare_digest(code, _code(token, b"listener", greeting, nonce))
    proof = _code(token, b"dialer", greeting, nonce) if genuine else bytes(_CODE_BYTES)
    await loop.sock_sendall(connection, proof)
    if not genuine:
        raise Refused(DIFFERING_PROOF)
    accepted, length = _VERDICT.unpack(await _read(connection, _VERDICT.size))
    if accepted == 1 and length == 0:
        return
    if length > _MAX_SENTENCE_BYTES:
        raise ProtocolError(f"a verdict of {length} bytes: must be at most {_MAX_SENTENCE_BYTES}")
    raise Refused((await _read(connection, length)).decode(errors="replace"))


async def accept_handshake(
    connection: socket.socket, token: bytes, judge: Callable[[Hello], str]
) -> Hello:
    """Let a dialer prove itself; `judge` returns why its hello is refused, "" accepts.

    Raises ProtocolError (Refused where the dialer is told why), OSError.
    """
    loop = asyncio.get_running_loop()
    greeting = await _read(connection, _HELLO.size)
    hello = Hello.decode(greeting)
    nonce = secrets.token_bytes(_CODE_BYTES)
    await loop.sock_sendall(connection, nonce + _code(token, b"listener", greeting, nonce))
    proof = await _read(connection, _CODE_BYTES)
    if not hmac.compare_digest(proof, _code(token, b"dialer", greeting, nonce)):
        refusal = DIFFERING_PROOF
    elif hello.version != VERSION:
        refusal = f"the wire versions differ: {hello.version} dials {VERSION}; update both"
    else:
        refusal = judge(hello)
    sentence = refusal.encode()[:_MAX_SENTENCE_BYTES]
    await loop.sock_sendall(connection, _VERDICT.pack(not refusal, len(sentence)) + sentence)
    if refusal:
        raise Refused(refusal)
    return hello


def differing_specs(hello: Hello, spec_hash: str) -> str:
    """Why a listener that serves `spec_hash` refuses, "" where both serve the same."""
    if hello.spec_hash == spec_hash:
        return ""
    return f"the specs differ: {hello.spec_hash[:12]} dials {spec_hash[:12]}"


def _code(token: bytes, side: bytes, greeting: bytes, nonce: bytes) -> bytes:
    return hmac.new(token, side + greeting + nonce, hashlib.sha256).digest()


async def _read(connection: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        part = await loop.sock_recv(connection, size - len(data))
        if not part:
            raise ProtocolError("the connection ended during the handshake")
        data += part
    return data
