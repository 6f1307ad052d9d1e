"""What master and stages say to each other on a control connection, besides the handshake.

Each message is one JSON object behind its length (4 bytes, big-endian), at most
MAX_MESSAGE_BYTES, checked against these classes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from contract.faults import faults_of
from runner.errors import ProtocolError
from runner.transport.silence import PING_INTERVAL_S, Silence

MAX_MESSAGE_BYTES = 64 * 1024
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class StageInfo:
    """What a stage says of itself when it joins, its weights loaded. Sizes in bytes.

    `kv_tokens` is how many positions its KV cache holds in all, over every request.
    `rope_boundary` is the total length above which a request's KV must be computed anew (longrope),
    None for other models.
    """

    rank: int
    address: str
    data_port: int
    layers: tuple[int, int]
    weight_bytes: int
    kv_bytes_per_token: int
    kv_tokens: int
    hidden_size: int
    vocab_size: int
    max_positions: int
    rope_boundary: int | None
    commit: str
    dtype: str
    device: str
    process_id: int


@dataclass(frozen=True, slots=True)
class GroupEvent:
    """Something that kept the group from serving, or its first start: `at` in unix seconds, `what`
    the beginning of a sentence, `duration_s` None until the group serves again."""

    at: float
    kind: Literal["start", "master", "rank", "epoch", "failed"]
    rank: int | None
    what: str
    duration_s: float | None


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """What a master has its stages remember for the next one; a higher `version` is newer.

    `restarts` and `instances` (the processes' that held the ranks last, "" for none) are by rank.
    """

    version: int
    epoch: int
    formations: int
    losses: int
    replays: int
    restarts: tuple[int, ...]
    instances: tuple[str, ...]
    events: tuple[GroupEvent, ...]


class _Message:
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Join(_Message):
    """Stage -> master, first of all. `instance` is random for each process; `stage` is set when
    its weights are loaded (a stage that outlived a master), `commit` once it knows the model's.
    `memory` is what its last master told it to remember, which it lost `alone_s` ago."""

    instance: str
    process_id: int
    address: str
    data_port: int
    commit: str | None
    stage: StageInfo | None
    memory: GroupMemory | None = None
    alone_s: float = 0.0
    kind: Literal["join"] = "join"


@dataclass(frozen=True)
class Welcome(_Message):
    """Master -> stage: you hold your rank; load this commit of the model."""

    commit: str
    kind: Literal["welcome"] = "welcome"


@dataclass(frozen=True)
class Refusal(_Message):
    """Master -> stage: you do not hold your rank; dial again later."""

    reason: str
    kind: Literal["refusal"] = "refusal"


@dataclass(frozen=True)
class Heartbeat(_Message):
    """Both ways, twice a second."""

    kind: Literal["heartbeat"] = "heartbeat"


@dataclass(frozen=True)
class Loaded(_Message):
    """Stage -> master: weights loaded."""

    stage: StageInfo
    kind: Literal["loaded"] = "loaded"


@dataclass(frozen=True)
class LoadFailed(_Message):
    """Stage -> master: the weights cannot be loaded; the stage exits."""

    reason: str
    kind: Literal["load_failed"] = "load_failed"


@dataclass(frozen=True)
class Form(_Message):
    """Master -> stage: a new epoch. Empty your KV cache, dial the next rank, say formed."""

    master: int
    counter: int
    addresses: tuple[tuple[str, int], ...]
    kind: Literal["form"] = "form"


@dataclass(frozen=True)
class Remember(_Message):
    """Master -> stage: what to tell the next master at the join."""

    memory: GroupMemory
    kind: Literal["remember"] = "remember"


@dataclass(frozen=True)
class Formed(_Message):
    """Stage -> master: both data connections of this epoch stand, the KV cache is empty."""

    counter: int
    kind: Literal["formed"] = "formed"


@dataclass(frozen=True)
class EpochFailed(_Message):
    """Stage -> master: a link broke or a step failed. Master -> stage: the epoch is over."""

    counter: int
    reason: str
    kind: Literal["epoch_failed"] = "epoch_failed"


@dataclass(frozen=True)
class Leaving(_Message):
    """Stage -> master: asked to end (SIGTERM); it keeps stepping until it is released."""

    kind: Literal["leaving"] = "leaving"


@dataclass(frozen=True)
class Released(_Message):
    """Master -> stage: drained, or the group goes on without you; a leaving stage ends now."""

    reason: str
    kind: Literal["released"] = "released"


Message = (
    Join
    | Welcome
    | Refusal
    | Heartbeat
    | Loaded
    | LoadFailed
    | Form
    | Remember
    | Formed
    | EpochFailed
    | Leaving
    | Released
)
_ADAPTER: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def encode(message: Message) -> bytes:
    body = _ADAPTER.dump_json(message)
    assert len(body) <= MAX_MESSAGE_BYTES
    return _LENGTH.pack(len(body)) + body


def decode(body: bytes) -> Message:
    """Raises ProtocolError."""
    try:
        return _ADAPTER.validate_json(body)
    except ValidationError as error:
        (fault,) = faults_of(error, whole="all of it", most=1)
        # Without the value: a peer may send anything.
        raise ProtocolError(f"a control message: {fault.path}: {fault.rule}") from None


class ControlChannel:
    """Messages over one proven connection; sending never waits, for what is sent is small."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.silence = Silence()

    @classmethod
    async def over(cls, connection: socket.socket) -> ControlChannel:
        return cls(*await asyncio.open_connection(sock=connection))

    def send(self, message: Message) -> None:
        """On a connection that has ended this does nothing: receive() tells."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def receive(self) -> Message:
        """Raises ProtocolError, or OSError where the connection has ended."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MAX_MESSAGE_BYTES:
                raise ProtocolError(f"a control message of {length} bytes")
            message = decode(await self._reader.readexactly(length))
            self.silence.heard()
            return message
        except asyncio.IncompleteReadError:
            raise ConnectionError("the connection ended") from None

    async def keep_alive(self) -> None:
        """Send heartbeats; returns once the other end has fallen silent."""
        await self.silence.outlast(lambda: self.send(Heartbeat()), PING_INTERVAL_S / 2)

    async def flush(self) -> None:
        await self._writer.drain()

    def close(self) -> None:
        """Close once what was sent has left."""
        self._writer.close()

    def abort(self) -> None:
        """Close now; a blocked receive() ends."""
        self._writer.transport.abort()
