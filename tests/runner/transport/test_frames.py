from __future__ import annotations

import random
import resource
import socket
from dataclasses import replace

import pytest

from contract.specs import GroupSpec, RankPart
from runner.errors import ProtocolError
from runner.grammar import GrammarFault
from runner.master.group.pipeline_ends import FrameReader
from runner.sampling_parameters import SamplingParameters
from runner.steps import Admission, Refusal, SampledToken, Segment, StageTime, Step, StepResult
from runner.transport.data_link import LinkBroken, TcpLink, TensorBuffer
from runner.transport.frames import (
    HEADER_BYTES,
    Epoch,
    Header,
    Limits,
    Operation,
    decode_header,
    encode_ping,
)
from runner.transport.result_frame import decode_result, encode_result
from runner.transport.step_frame import decode_step, encode_step, pass_on, pass_on_aborted

EPOCH = Epoch(0x1234_5678_9ABC_DEF0, 7)
HIDDEN, VOCABULARY, POSITIONS = 16, 1000, 512
SPEC = GroupSpec("wire", "model", (RankPart((0, 1)), RankPart((1, 2))))
SIZES = {"hidden": HIDDEN, "vocab": VOCABULARY, "positions": POSITIONS}
FIRST = Limits.of_stage(SPEC, 0, **SIZES)
SECOND = Limits.of_stage(SPEC, 1, **SIZES)
MASTER = Limits.of_master(SPEC, vocab=VOCABULARY, positions=POSITIONS)
SAMPLING = SamplingParameters(
    temperature=0.7, top_k=5, stop_token_ids=(3, 4), logit_bias={9: -1.5}, logprobs=2
)
STEP = Step(
    41,
    (Segment(2**63, 0, 3, 5, False, 3, 998), Segment(8, 17, 1, 18, True)),
    (1, 2, 3, 999),
    (Admission(2**63, 100, 5, 1, 2**63 - 1, SAMPLING, donor=2**64 - 1, reused=99, grammar="é{"),),
    (5, 6),
)
TOKENS = (
    SampledToken(8, 18, 12),
    SampledToken(9, 3, 13, -0.25, ((13, -0.25), (14, -3.0))),
    SampledToken(10, 4, 14, float("-inf")),
)
SCORED = (SampledToken(2**63, 1, 2, -7.5, ((1, -0.5),)), SampledToken(2**63, 2, 3, -2.0))
REFUSED = (Refusal(2**63, GrammarFault.DEAD_END),)
TIMES = (StageTime(0, 111, 222), StageTime(1, 333, 444))


def parsed_step(frame: bytes, limits: Limits) -> Step:
    header = decode_header(frame, EPOCH, limits)
    body = frame[HEADER_BYTES : HEADER_BYTES + header.body_bytes]
    return decode_step(header, body, limits)


def second_hop() -> bytes:
    """STEP as stage 0 passes it on, with its tensor."""
    frame = encode_step(STEP, EPOCH)
    header = decode_header(frame, EPOCH, FIRST)
    front = pass_on(header, frame[HEADER_BYTES:], StageTime(0, 111, 222), "bfloat16", HIDDEN)
    return front + bytes(range(4 * HIDDEN)) + bytes(4 * HIDDEN)


def result_frame() -> bytes:
    frame = second_hop()
    header = decode_header(frame, EPOCH, SECOND)
    body = frame[HEADER_BYTES : HEADER_BYTES + header.body_bytes]
    return encode_result(header, body, TIMES[1], TOKENS, SCORED, REFUSED)


def test_a_step_comes_out_as_it_went_in() -> None:
    assert parsed_step(encode_step(STEP, EPOCH), FIRST) == STEP
    assert parsed_step(second_hop(), SECOND) == STEP
    empty = Step(1, (), (), (), (3,))
    assert parsed_step(encode_step(empty, EPOCH), FIRST) == empty


def test_a_result_comes_out_as_it_went_in() -> None:
    frame = result_frame()
    header = decode_header(frame, EPOCH, MASTER)
    assert len(frame) == HEADER_BYTES + header.body_bytes
    expected = StepResult(41, TOKENS, TIMES, SCORED, refused=REFUSED)
    assert decode_result(header, frame[HEADER_BYTES:], MASTER) == expected


def test_an_aborted_step_travels_without_a_tensor() -> None:
    frame = encode_step(STEP, EPOCH)
    header = decode_header(frame, EPOCH, FIRST)
    frame = pass_on_aborted(header, frame[HEADER_BYTES:], TIMES[0])
    header, body = decode_header(frame, EPOCH, SECOND), frame[HEADER_BYTES:]
    assert header.aborted
    assert header.tensor_bytes == 0
    assert decode_step(header, body, SECOND) == STEP
    frame = encode_result(header, body, TIMES[1], (), aborted=True)
    header = decode_header(frame, EPOCH, MASTER)
    expected = StepResult(41, (), TIMES, aborted=True)
    assert decode_result(header, frame[HEADER_BYTES:], MASTER) == expected


def test_what_follows_the_scored_rows() -> None:
    step = Step(
        1,
        (Segment(1, 0, 3, 5, False, 3, 9), Segment(2, 4, 1, 5, True), Segment(3, 6, 2, 8, True, 1)),
        (5, 6, 7, 0, 3, 4),
    )
    assert [*step.following()] == [(1, 1, 6), (1, 2, 7), (1, 3, 9), (3, 7, 4)]
    assert step.scored_rows == 4


def test_a_link_carries_frames_and_passes_over_pings() -> None:
    left, right = socket.socketpair()
    link = TcpLink(right, EPOCH, SECOND)
    front = second_hop()[: -8 * HIDDEN]
    tensor = bytes(range(8 * HIDDEN))
    sender = TcpLink(left, EPOCH, SECOND)
    sender.send(encode_ping(EPOCH))
    sender.send(front, memoryview(tensor))
    frame = link.receive(TensorBuffer(SECOND))
    assert frame.step == STEP
    assert bytes(frame.tensor) == tensor
    left.close()
    with pytest.raises(LinkBroken, match="closed by the other end"):
        link.receive(TensorBuffer(SECOND))
    right.close()


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        (replace(FIRST, tokens=3), "tokens = 4: must be at most 3"),
        (replace(FIRST, segments=1), "segments = 2: must be at most 1"),
        (replace(FIRST, vocab_size=999), "token id 999: must be below 999"),
        (replace(FIRST, positions=17), "total at most 17"),
        (replace(FIRST, positions=99), "an admission out of range"),
        (replace(FIRST, hidden_size=8), "hidden size = 0: must be 8"),
        (replace(FIRST, times=1), "times = 0: must be 1"),
        (MASTER, "only RESULT is accepted"),
    ],
)
def test_what_breaks_the_receivers_limits_is_refused_by_name(limits: Limits, what: str) -> None:
    with pytest.raises(ProtocolError, match=what):
        parsed_step(encode_step(STEP, EPOCH), limits)


@pytest.mark.parametrize(
    ("step", "what"),
    [
        (replace(STEP, token_ids=(1, 2, 3)), "lengths are 4 in all"),
        (replace(STEP, segments=(*STEP.segments[:1],) * 2, token_ids=(1,) * 6), "two segments"),
        (replace(STEP, segments=(Segment(1, 0, 4, 3, True),)), "within total"),
        (replace(STEP, segments=(Segment(1, 0, 4, 4, True, 5),)), "5 rows of 4 are scored"),
        (replace(STEP, segments=(Segment(1, 0, 4, 5, True, 4, 1000),)), "the last by 1000"),
    ],
)
def test_a_step_that_contradicts_itself_is_refused(step: Step, what: str) -> None:
    with pytest.raises(ProtocolError, match=what):
        parsed_step(encode_step(step, EPOCH), FIRST)


@pytest.mark.parametrize(
    ("header", "limits", "what"),
    [
        (Header(Operation.STEP, EPOCH, aborted=True), FIRST, "no stage has seen"),
        (Header(Operation.PING, EPOCH, aborted=True), FIRST, "a ping"),
        (Header(Operation.RESULT, EPOCH, 0, 1, 2, (1, 0, 0), True), MASTER, "an aborted step with"),
        (Header(Operation.RESULT, EPOCH, 0, 1, 2, (0, 10**6, 0)), MASTER, "scored = 1000000"),
        (Header(Operation.RESULT, EPOCH, 0, 1, 2, (1, 1, 41)), MASTER, "41 alternatives"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    header: Header, limits: Limits, what: str
) -> None:
    with pytest.raises(ProtocolError, match=what):
        decode_header(header.encode(), EPOCH, limits)


def test_a_frame_of_another_epoch_is_refused_by_name() -> None:
    with pytest.raises(ProtocolError, match=r"a frame of epoch 123456789abcdef0/7; this is epoch"):
        decode_header(encode_step(STEP, EPOCH), EPOCH._replace(counter=8), FIRST)


def test_bad_sampling_parameters_are_refused() -> None:
    frame = encode_step(STEP, EPOCH).replace(b'"temperature": 0.7', b'"temperature": NaN')
    assert frame != encode_step(STEP, EPOCH)
    with pytest.raises(ProtocolError, match="temperature"):
        parsed_step(frame, FIRST)


def mutate(frame: bytes, chance: random.Random) -> bytes:
    """Flipped bits, extreme values, cuts, repeats: one to three of them."""
    data = bytearray(frame)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data))
        kind = chance.randrange(5)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at : at + 4] = chance.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4)))
        elif kind == 2:
            data[at] = chance.randrange(256)
        elif kind == 3 and len(data) > 8:
            del data[at:]
        else:
            data[at:at] = data[at : at + chance.randrange(64)]
        if not data:
            data.append(chance.randrange(256))
    return bytes(data)


def test_mutated_frames_raise_protocol_errors_and_allocate_nothing_they_claim() -> None:
    """110,000 frames: 70,000 to a stage's link, 40,000 to the master's reader."""
    chance = random.Random(20)
    to_stage = ((encode_step(STEP, EPOCH), FIRST), (second_hop(), SECOND))
    buffers = {FIRST.hidden_size: TensorBuffer(FIRST), SECOND.hidden_size: TensorBuffer(SECOND)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = taken = 0
    for number in range(70_000):
        frame, limits = to_stage[number % 2]
        left, right = socket.socketpair()
        left.sendall(mutate(frame, chance))
        left.close()
        try:
            assert isinstance(
                TcpLink(right, EPOCH, limits).receive(buffers[limits.hidden_size]).step, Step
            )
            taken += 1
        except ProtocolError:
            refused += 1
        finally:
            right.close()
    frame = result_frame() + encode_ping(EPOCH)
    for _ in range(40_000):
        broken: list[str] = []
        results: list[StepResult] = []
        reader = FrameReader(EPOCH, MASTER, results.append, broken.append)
        reader.data_received(mutate(frame, chance))
        refused += len(broken)
        taken += len(results)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert refused > 60_000
    assert taken > 5_000  # changed token ids or times are other frames, not broken ones
    assert grown_kib < 32 * 1024


def test_no_header_claims_more_than_the_limits() -> None:
    chance = random.Random(21)
    frames = ((encode_step(STEP, EPOCH), FIRST), (second_hop(), SECOND), (result_frame(), MASTER))
    largest_body = SECOND.segments * (2**16 + 64) + SECOND.tokens * 4
    for number in range(50_000):
        frame, limits = frames[number % 3]
        data = bytearray(frame[:HEADER_BYTES])
        at = chance.randrange(26, HEADER_BYTES)  # step, times, counts
        data[at : at + 4] = chance.randbytes(min(4, HEADER_BYTES - at))
        try:
            header = decode_header(data, EPOCH, limits)
        except ProtocolError:
            continue
        assert header.operation in (Operation.STEP, Operation.RESULT)
        assert header.body_bytes <= largest_body
        assert header.tensor_bytes <= limits.tokens * limits.hidden_size * 4
