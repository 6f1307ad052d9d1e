"""What master and stages say to each other on a control connection, besides the handshake.

Each message is one JSON object behind its length (4 bytes, big-endian), at most
MAX_MESSAGE_BYTES, checked against these classes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from contract.faults import faults_of
from contract.specs import GroupSpec, spec_hash
from runner.errors import ProtocolError

MAX_MESSAGE_BYTES = 256 * 1024
# Characters of a reason; the text of an exception may be of any length.
MAX_REASON = 2_000
LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class StageInfo:
    """What a stage says of the weights that it has loaded. Sizes in bytes.

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
    kind: Literal["start", "master", "rank", "epoch", "failed", "swap"]
    rank: int | None
    what: str
    duration_s: float | None


@dataclass(frozen=True, slots=True)
class Served:
    """What a group serves: a spec, and the commit of its model that every stage holds."""

    spec: GroupSpec
    commit: str

    @property
    def spec_hash(self) -> str:
        return spec_hash(self.spec)


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """What a master has its stages remember for the next one; a higher `version` is newer.

    `restarts` and `instances` (the processes' that held the ranks last, "" for none) are by rank.
    `served` is what was in force, None where nothing was yet.
    """

    version: int
    epoch: int
    formations: int
    losses: int
    replays: int
    restarts: tuple[int, ...]
    instances: tuple[str, ...]
    events: tuple[GroupEvent, ...]
    served: Served | None = None


class _Message:
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    def __post_init__(self) -> None:
        reason = getattr(self, "reason", "")
        if len(reason) > MAX_REASON:
            object.__setattr__(self, "reason", f"{reason[: MAX_REASON - 1]}…")


@dataclass(frozen=True)
class Holding(_Message):
    """The weights that a stage holds, and the spec by which they go."""

    spec_hash: str
    stage: StageInfo


@dataclass(frozen=True)
class Join(_Message):
    """Stage -> master, first of all: what it is, whatever is served.

    `instance` is random for each process; `devices` is what the stack file calls its device,
    `device_uuid` what the driver calls the one that it uses ("" where nobody tells), and
    `device_bytes` is all memory of that. `holding` is set once it has weights (a stage that
    outlived a master). `memory` is what its last master told it to remember, which it lost
    `alone_s` ago.
    """

    instance: str
    process_id: int
    address: str
    data_port: int
    node: str
    devices: str
    holding: Holding | None = None
    memory: GroupMemory | None = None
    alone_s: float = 0.0
    device_uuid: str = ""
    device_bytes: int | None = None
    kind: Literal["join"] = "join"


@dataclass(frozen=True)
class Welcome(_Message):
    """Master -> stage: you hold your rank; without a `part` in what is served you wait."""

    part: bool
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
class Prepare(_Message):
    """Master -> stage: have what your part of this spec needs here, and check it; what you compute
    with now stays. A later one takes this one's place.

    `sharing` ranks, this one among them, take their memory from the same node. With `in_force` the
    group has nothing else to serve: a stage that cannot have it ends.
    """

    spec: GroupSpec
    commit: str
    sharing: int
    in_force: bool
    kind: Literal["prepare"] = "prepare"


@dataclass(frozen=True)
class Progress(_Message):
    """Stage -> master, once a second while it prepares: bytes of its part that are here."""

    spec_hash: str
    fetched_bytes: int
    wanted_bytes: int
    kind: Literal["progress"] = "progress"


@dataclass(frozen=True)
class Prepared(_Message):
    """Stage -> master: all is here, and it fits. `loaded`: its weights are in memory too, beside
    those that it computes with."""

    spec_hash: str
    loaded: bool = False
    kind: Literal["prepared"] = "prepared"


@dataclass(frozen=True)
class PrepareFailed(_Message):
    """Stage -> master: it cannot have its part; what it computes with stays as it is."""

    spec_hash: str
    reason: str
    kind: Literal["prepare_failed"] = "prepare_failed"


@dataclass(frozen=True)
class Forget(_Message):
    """Master -> stage: what you were told to prepare of this spec, of any where it is "", is not
    wanted any more."""

    spec_hash: str
    kind: Literal["forget"] = "forget"


@dataclass(frozen=True)
class Load(_Message):
    """Master -> stage, after prepared and between two epochs: these weights take the place of
    those that you hold."""

    spec_hash: str
    kind: Literal["load"] = "load"


@dataclass(frozen=True)
class Loaded(_Message):
    """Stage -> master: it holds the weights of this spec."""

    spec_hash: str
    stage: StageInfo
    kind: Literal["loaded"] = "loaded"


@dataclass(frozen=True)
class LoadFailed(_Message):
    """Stage -> master: the weights cannot be loaded, and it holds none."""

    spec_hash: str
    reason: str
    kind: Literal["load_failed"] = "load_failed"


@dataclass(frozen=True)
class Take(_Message):
    """Master -> stage: what you hold goes by this spec from now on, in which only limits of the
    group are others."""

    spec: GroupSpec
    kind: Literal["take"] = "take"


@dataclass(frozen=True)
class Taken(_Message):
    """Stage -> master: it accepts steps within these limits."""

    spec_hash: str
    kind: Literal["taken"] = "taken"


@dataclass(frozen=True)
class Form(_Message):
    """Master -> stage: a new epoch of this spec. Empty your KV cache, dial the next rank, say
    formed."""

    master: int
    counter: int
    spec_hash: str
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
    | Prepare
    | Progress
    | Prepared
    | PrepareFailed
    | Forget
    | Load
    | Loaded
    | LoadFailed
    | Take
    | Taken
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
    return LENGTH.pack(len(body)) + body


def decode(body: bytes) -> Message:
    """Raises ProtocolError."""
    try:
        return _ADAPTER.validate_json(body)
    except ValidationError as error:
        (fault,) = faults_of(error, whole="all of it", most=1)
        # Without the value: a peer may send anything.
        raise ProtocolError(f"a control message: {fault.path}: {fault.rule}") from None
