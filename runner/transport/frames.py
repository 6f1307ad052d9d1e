"""Frames of the data links: a fixed header, packed arrays, at most one activation tensor.

Here are the header and what a receiver accepts; the arrays are in step_frame and result_frame.

Little-endian. Every count of a header is checked against the receiver's own limits before a byte
is allocated for what follows; nothing is unpickled. Sampling parameters travel as JSON, bounded in
size. A stage passes the body on as it came and appends its own time. No torch here: the master
uses this too, and a tensor is a block of bytes with a dtype's name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

from contract.specs import GroupSpec
from runner.errors import ProtocolError
from runner.grammar import MAX_GRAMMAR_BYTES
from runner.sampling_parameters import MAX_LOGPROBS
from runner.steps import MOST_KEPT, StageTime

MAGIC = b"SPLS"
VERSION = 5  # of all that travels, control messages too
DTYPES = ("", "float32", "bfloat16", "float16")
ITEM_BYTES = (0, 4, 2, 2)
# One admission: the largest logit_bias is 32 KiB, and a grammar's text is quoted once more.
ADMISSION_BYTES = 2 * MAX_GRAMMAR_BYTES + 64 * 1024

_HEADER = struct.Struct("<4sBBBBQIQH6I")
SEGMENT = struct.Struct("<QIII?II")
RELEASE_BYTES, TOKEN_BYTES = 8, 4
TIME = struct.Struct("<HQQ")
SAMPLED = struct.Struct("<QII?dB")
ALTERNATIVE = struct.Struct("<Id")
REFUSED = struct.Struct("<QB")
_ABORTED = 1  # the one flag
HEADER_BYTES = _HEADER.size


class Operation(IntEnum):
    """What a frame is. A ping says that the sender lives; it has no body."""

    PING = 0
    STEP = 1
    RESULT = 2


class Epoch(NamedTuple):
    """One life of the group: a random 64-bit id of the master's own life, and its counter."""

    master: int
    counter: int

    def __str__(self) -> str:
        return f"{self.master:016x}/{self.counter}"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a receiver accepts: `operation` besides pings, exactly `times` stage times."""

    operation: Operation
    times: int
    tokens: int
    segments: int
    hidden_size: int
    vocab_size: int
    positions: int

    @classmethod
    def of_stage(
        cls, spec: GroupSpec, rank: int, *, hidden: int, vocab: int, positions: int
    ) -> Limits:
        """What stage `rank` accepts; stage 0 is sent token ids only, no tensor."""
        segments = max_segments(spec)
        tokens = spec.prefill_token_budget + segments
        hidden_size = hidden if rank > 0 else 0
        return cls(Operation.STEP, rank, tokens, segments, hidden_size, vocab, positions)

    @classmethod
    def of_master(cls, spec: GroupSpec, *, vocab: int, positions: int) -> Limits:
        """What the master accepts from the last stage: `tokens` scored ones."""
        segments = max_segments(spec)
        tokens = spec.prefill_token_budget + segments
        return cls(Operation.RESULT, len(spec.ranks), tokens, segments, 0, vocab, positions)

    def or_within(self, other: Limits) -> Limits:
        """So that a receiver takes what is within either; both are of one model."""
        return replace(
            self,
            tokens=max(self.tokens, other.tokens),
            segments=max(self.segments, other.segments),
        )


def max_segments(spec: GroupSpec) -> int:
    """How many segments (also admissions) one step may have, probes included. Releases may be
    those of all slots that are kept besides."""
    return 2 * spec.max_concurrent_requests + 16


class StepCounts(NamedTuple):
    """What follows a step's header: `admission_bytes` of JSON; `hidden_size` 0 for no tensor."""

    segments: int = 0
    tokens: int = 0
    releases: int = 0
    admissions: int = 0
    admission_bytes: int = 0
    hidden_size: int = 0

    @property
    def body_bytes(self) -> int:
        """Without the stage times."""
        arrays = self.segments * SEGMENT.size + self.tokens * TOKEN_BYTES
        return arrays + self.releases * RELEASE_BYTES + self.admission_bytes


class ResultCounts(NamedTuple):
    """What follows a result's header, whose other counts are 0."""

    tokens: int
    scored: int
    alternatives: int
    refused: int = 0

    @property
    def body_bytes(self) -> int:
        """Without the stage times."""
        rows = self.tokens + self.scored
        more = self.alternatives * ALTERNATIVE.size + self.refused * REFUSED.size
        return rows * SAMPLED.size + more


class Header(NamedTuple):
    """One frame's header: six counts, which are a step's or a result's by its `operation`.

    An `aborted` step goes on with its body and no tensor, so that it comes back in its turn.
    """

    operation: int
    epoch: Epoch
    dtype: int = 0
    step: int = 0
    times: int = 0
    counts: tuple[int, ...] = StepCounts()
    aborted: bool = False

    @property
    def of_step(self) -> StepCounts:
        return StepCounts(*self.counts)

    @property
    def of_result(self) -> ResultCounts:
        return ResultCounts(*self.counts[:4])

    @property
    def body_bytes(self) -> int:
        result = self.operation == Operation.RESULT
        arrays = self.of_result.body_bytes if result else self.of_step.body_bytes
        return arrays + self.times * TIME.size

    @property
    def tensor_bytes(self) -> int:
        counts = self.of_step
        return counts.tokens * counts.hidden_size * ITEM_BYTES[self.dtype]

    def encode(self) -> bytes:
        operation, epoch, dtype, step, times, counts, aborted = self
        zeros = (0,) * (len(StepCounts._fields) - len(counts))
        start = (MAGIC, VERSION, operation, dtype, _ABORTED * aborted)
        return _HEADER.pack(*start, *epoch, step, times, *counts, *zeros)


def encode_ping(epoch: Epoch) -> bytes:
    return Header(Operation.PING, epoch).encode()


def decode_header(data: bytes | bytearray | memoryview, epoch: Epoch, limits: Limits) -> Header:
    """The header in the first HEADER_BYTES of `data`; raises ProtocolError naming what is wrong."""
    magic, version, operation, dtype, flags, master, counter, step, times, *counts = (
        _HEADER.unpack_from(data)
    )
    if magic != MAGIC or version != VERSION or flags not in (0, _ABORTED):
        raise ProtocolError(f"a frame starts with {magic!r}, version {version}, flags {flags}")
    if Epoch(master, counter) != epoch:
        raise ProtocolError(f"a frame of epoch {Epoch(master, counter)}; this is epoch {epoch}")
    header = Header(operation, epoch, dtype, step, times, tuple(counts), bool(flags))
    if operation == Operation.PING:
        if flags or dtype or step or times or any(counts):
            raise ProtocolError("a ping with counts")
        return header
    if operation != limits.operation:
        raise ProtocolError(f"operation = {operation}: only {limits.operation.name} is accepted")
    if times != limits.times:
        raise ProtocolError(f"times = {times}: must be {limits.times}")
    check = _check_step if operation == Operation.STEP else _check_result
    check(header, limits)
    return header


def _check_step(header: Header, limits: Limits) -> None:
    counts = header.of_step
    bounds = (
        ("segments", counts.segments, limits.segments),
        ("tokens", counts.tokens, limits.tokens),
        ("releases", counts.releases, limits.segments + MOST_KEPT),
        ("admissions", counts.admissions, limits.segments),
        ("admission bytes", counts.admission_bytes, counts.admissions * ADMISSION_BYTES),
    )
    for name, value, bound in bounds:
        if value > bound:
            raise ProtocolError(f"{name} = {value}: must be at most {bound}")
    if header.aborted and not header.times:
        raise ProtocolError("an aborted step that no stage has seen")
    expected = limits.hidden_size if counts.tokens and not header.aborted else 0
    if counts.hidden_size != expected:
        raise ProtocolError(f"hidden size = {counts.hidden_size}: must be {expected}")
    if header.dtype >= len(DTYPES) or bool(header.dtype) != bool(expected):
        raise ProtocolError(f"dtype = {header.dtype} beside a hidden size of {expected}")


def _check_result(header: Header, limits: Limits) -> None:
    tokens, scored, alternatives, refused = header.of_result
    if tokens + refused > limits.segments or alternatives > (tokens + scored) * MAX_LOGPROBS:
        raise ProtocolError(
            f"a result of {tokens} tokens with {alternatives} alternatives, {refused} refused"
        )
    if scored > limits.tokens:
        raise ProtocolError(f"scored = {scored}: must be at most {limits.tokens}")
    if header.aborted and tokens + scored + refused:
        raise ProtocolError(f"an aborted step with {tokens} tokens and {scored} scored ones")
    if header.dtype or any(header.counts[4:]):
        raise ProtocolError("a result with a tensor")


def decode_times(header: Header, body: bytes | bytearray) -> tuple[StageTime, ...]:
    view = memoryview(body)[header.body_bytes - header.times * TIME.size : header.body_bytes]
    times = tuple(StageTime(*item) for item in TIME.iter_unpack(view))
    if any(time.rank != rank for rank, time in enumerate(times)):
        raise ProtocolError(f"stage times of the ranks {[time.rank for time in times]}")
    return times
