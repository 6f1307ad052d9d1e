"""A step as a frame: from the master to stage 0, and on from stage to stage."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from itertools import starmap
from typing import Any

from contract.generation import SEED_LIMIT
from runner.errors import InvalidField, ProtocolError
from runner.grammar import MAX_GRAMMAR_BYTES
from runner.sampling_parameters import SamplingParameters
from runner.steps import Admission, Segment, StageTime, Step
from runner.transport.frames import (
    DTYPES,
    RELEASE_BYTES,
    SEGMENT,
    TIME,
    TOKEN_BYTES,
    Epoch,
    Header,
    Limits,
    Operation,
    StepCounts,
    decode_times,
)


def encode_step(step: Step, epoch: Epoch) -> bytes:
    """A step as the master sends it to stage 0."""
    admissions = b""
    if step.admissions:
        admissions = json.dumps([_admission_json(item) for item in step.admissions]).encode()
    counts = StepCounts(
        segments=len(step.segments),
        tokens=len(step.token_ids),
        releases=len(step.releases),
        admissions=len(step.admissions),
        admission_bytes=len(admissions),
    )
    segments = [
        SEGMENT.pack(
            item.request,
            item.start,
            item.length,
            item.total,
            item.sample,
            item.scored,
            item.following,
        )
        for item in step.segments
    ]
    return b"".join(
        (
            Header(Operation.STEP, epoch, step=step.number, counts=counts).encode(),
            *segments,
            struct.pack(f"<{counts.tokens}I", *step.token_ids),
            struct.pack(f"<{counts.releases}Q", *step.releases),
            admissions,
        )
    )


def pass_on(
    header: Header, body: bytes | bytearray, time: StageTime, dtype: str, hidden: int
) -> bytes:
    """A step's frame for the next stage, up to its tensor of [tokens, hidden] in `dtype`."""
    counts = header.of_step._replace(hidden_size=hidden)
    code = DTYPES.index(dtype) if hidden else 0
    front = header._replace(dtype=code, times=header.times + 1, counts=counts)
    return front.encode() + body + TIME.pack(time.rank, time.compute_ns, time.wait_ns)


def pass_on_aborted(header: Header, body: bytes | bytearray, time: StageTime) -> bytes:
    """The same of a step that this stage, or one before it, has not computed: without a tensor."""
    return pass_on(header._replace(aborted=True), body, time, "", 0)


def decode_step(header: Header, body: bytes | bytearray, limits: Limits) -> Step:
    """The step of a checked header and its whole body; raises ProtocolError."""
    count, tokens, releases, admissions, admission_bytes, _ = header.of_step
    offset = count * SEGMENT.size
    rows = list(SEGMENT.iter_unpack(memoryview(body)[:offset]))
    _check_segments(rows, tokens, limits)
    token_ids = struct.unpack_from(f"<{tokens}I", body, offset)
    if tokens and max(token_ids) >= limits.vocab_size:
        raise ProtocolError(f"token id {max(token_ids)}: must be below {limits.vocab_size}")
    offset += tokens * TOKEN_BYTES
    released = struct.unpack_from(f"<{releases}Q", body, offset)
    offset += releases * RELEASE_BYTES
    admitted = _decode_admissions(body[offset : offset + admission_bytes], admissions, limits)
    decode_times(header, body)
    return Step(header.step, tuple(starmap(Segment, rows)), token_ids, admitted, released)


def _check_segments(rows: Sequence[tuple[Any, ...]], tokens: int, limits: Limits) -> None:
    lengths = 0
    for request, start, length, total, _, scored, following in rows:
        if not length or start + length > total or total > limits.positions:
            raise ProtocolError(
                f"request {request}: {length} positions from {start} of {total}: must be at least"
                f" one, within total, and total at most {limits.positions}"
            )
        if scored > length or following >= limits.vocab_size:
            raise ProtocolError(
                f"request {request}: {scored} rows of {length} are scored, the last by {following}"
            )
        lengths += length
    if lengths != tokens:
        raise ProtocolError(f"tokens = {tokens}: the segments' lengths are {lengths} in all")
    if len({row[0] for row in rows}) != len(rows):
        raise ProtocolError("two segments of one request in one step")


def _admission_json(admission: Admission) -> list[Any]:
    return [
        admission.request,
        admission.capacity,
        admission.prompt_length,
        admission.choice,
        admission.seed,
        admission.donor,
        admission.reused,
        admission.sampling.to_json(),
        admission.grammar,
    ]


def _decode_admissions(
    data: bytes | bytearray, count: int, limits: Limits
) -> tuple[Admission, ...]:
    if not count:
        return ()
    try:
        rows = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"admissions are not JSON: {type(error).__name__}") from None
    if not isinstance(rows, list) or len(rows) != count:
        raise ProtocolError(f"admissions: must be a list of {count}")
    return tuple(_decode_admission(row, limits) for row in rows)


def _decode_admission(row: object, limits: Limits) -> Admission:
    kinds = [int] * 7 + [dict, str]
    if not isinstance(row, list) or [type(value) for value in row] != kinds:
        raise ProtocolError("an admission must be a list of 7 integers, an object and a text")
    request, capacity, prompt_length, choice, seed, donor, reused, sampling, grammar = row
    in_range = (
        0 <= request < 2**64
        and 0 < prompt_length <= capacity <= limits.positions
        and 0 <= choice < 2**31
        and 0 <= seed < SEED_LIMIT
        and 0 <= donor < 2**64
        and 0 <= reused < capacity
        and not (reused and donor == request)
        and len(grammar) <= MAX_GRAMMAR_BYTES
    )
    if not in_range:
        raise ProtocolError(f"an admission out of range: {str(row[:7])[:200]}")
    try:
        parameters = SamplingParameters.from_json(sampling)
    except (InvalidField, TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"sampling parameters of an admission: {str(error)[:200]}") from None
    return Admission(
        request, capacity, prompt_length, choice, seed, parameters, donor, reused, grammar
    )
