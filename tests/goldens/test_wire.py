"""The bytes between the ranks: data frames, the handshake, control messages.

Ranks of two versions of the code meet while a group is replaced one by one; what they say to each
other is held byte for byte, and what is read back equals what was sent.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Sequence
from dataclasses import replace

import pytest

from contract.specs import GroupSpec, RankPart, spec_hash
from runner.grammar import GrammarFault
from runner.sampling_parameters import SamplingParameters
from runner.steps import Admission, Refusal, SampledToken, Segment, StageTime, Step, StepResult
from runner.transport import control as control_message
from runner.transport.control import StageInfo
from runner.transport.frames import HEADER_BYTES, Epoch, Limits, decode_header, encode_ping
from runner.transport.handshake import (
    NO_EPOCH,
    NO_SPEC,
    Hello,
    Role,
    accept_handshake,
    dial_handshake,
    differing_specs,
)
from runner.transport.result_frame import decode_result, encode_result
from runner.transport.step_frame import decode_step, encode_step, pass_on, pass_on_aborted
from tests.goldens.recorded_file import check_recorded

EPOCH = Epoch(0x1234_5678_9ABC_DEF0, 7)
HIDDEN, VOCABULARY, POSITIONS = 16, 1000, 512
SPEC = GroupSpec("wire", "model", (RankPart((0, 1)), RankPart((1, 2), 2**33)))
DIGEST = spec_hash(SPEC)
SIZES = {"hidden": HIDDEN, "vocab": VOCABULARY, "positions": POSITIONS}
FIRST = Limits.of_stage(SPEC, 0, **SIZES)
SECOND = Limits.of_stage(SPEC, 1, **SIZES)
MASTER = Limits.of_master(SPEC, vocab=VOCABULARY, positions=POSITIONS)
TIMES = (StageTime(0, 111, 2**40), StageTime(1, 333, 0))
EVERYTHING = SamplingParameters(
    temperature=0.7,
    top_k=5,
    top_p=0.95,
    min_p=0.05,
    repetition_penalty=1.1,
    presence_penalty=-0.5,
    frequency_penalty=2.0,
    seed=2**63 - 1,
    stop_token_ids=(3, 4),
    logit_bias={9: -1.5, 10: 100.0},
    logprobs=20,
)
GREEDY = SamplingParameters(temperature=0.0)
STEPS = {
    "only releases": Step(1, (), (), (), (3, 2**63)),
    "prefill": Step(
        2,
        (Segment(2**63, 0, 3, 5, False), Segment(8, 17, 1, 18, True)),
        (1, 2, 3, 999),
        (Admission(2**63, 100, 5, 1, 2**63 - 1, EVERYTHING),),
        (5, 6),
    ),
    "two admissions": Step(
        3,
        (Segment(1, 0, 1, 1, True), Segment(2, 0, 2, 2, True)),
        (7, 8, 9),
        (
            Admission(1, 20, 1, 0, 0, GREEDY),
            Admission(2, POSITIONS, 2, 15, 42, SamplingParameters()),
        ),
    ),
    "a session's next turn": Step(
        5,
        (Segment(3, 17, 2, 19, True),),
        (7, 8),
        (Admission(3, 30, 19, 0, 0, GREEDY, donor=2, reused=17),),
        (2,),
    ),
    "a prompt that is scored": Step(
        4,
        (Segment(1, 0, 2, 3, False, 2, 9), Segment(2, 5, 2, 7, True, 1)),
        (7, 8, 1, 2),
        (Admission(1, 20, 3, 0, 0, replace(GREEDY, logprobs=1)),),
    ),
    "a grammar": Step(
        6,
        (Segment(4, 0, 2, 2, True),),
        (7, 8),
        (Admission(4, 30, 2, 0, 0, GREEDY, grammar='{"grammars": [{"lark_grammar": "é"}]}'),),
    ),
    "decode": Step(2**40, (Segment(1, 4, 1, 5, True), Segment(2, 5, 1, 6, True)), (0, 1)),
}
RESULTS: dict[str, tuple[SampledToken, ...]] = {
    "nothing": (),
    "tokens": (SampledToken(8, 18, 12), SampledToken(2**63, 512, 999)),
    "log probabilities": (
        SampledToken(9, 3, 13, -0.25, ((13, -0.25), (14, -3.0))),
        SampledToken(10, 4, 14, float("-inf")),
        SampledToken(11, 5, 15),
    ),
}
REFUSED = (Refusal(2**63, GrammarFault.TOO_COMPLEX),)
SCORED = (SampledToken(1, 1, 8, -3.5, ((5, -0.5),)), SampledToken(1, 2, 9, -0.5))
STAGE = StageInfo(
    rank=1,
    address="10.0.0.7",
    data_port=3001,
    layers=(5, 12),
    weight_bytes=2**33,
    kv_bytes_per_token=4096,
    kv_tokens=100_000,
    hidden_size=HIDDEN,
    vocab_size=VOCABULARY,
    max_positions=POSITIONS,
    rope_boundary=None,
    commit="c0ffee",
    dtype="bfloat16",
    device="cuda:0",
    process_id=17,
)
MEMORY = control_message.GroupMemory(
    version=9,
    epoch=7,
    formations=6,
    losses=5,
    replays=4,
    restarts=(0, 3),
    instances=("a", ""),
    events=(
        control_message.GroupEvent(1.5, "start", None, "started", 12.5),
        control_message.GroupEvent(20.0, "rank", 1, "rank 1 gone", None),
    ),
    served=control_message.Served(SPEC, "c0ffee"),
)
MESSAGES: dict[str, control_message.Message] = {
    "join": control_message.Join("an instance", 17, "10.0.0.7", 3001, "a-node", "cuda:0"),
    "join again": control_message.Join(
        "é",
        17,
        "::1",
        3001,
        "",
        "cpu",
        control_message.Holding(DIGEST, replace(STAGE, rope_boundary=4096)),
    ),
    "join of a stage that outlived its master": control_message.Join(
        "an instance",
        17,
        "10.0.0.7",
        3001,
        "a-node",
        "1",
        control_message.Holding(DIGEST, STAGE),
        MEMORY,
        2.5,
    ),
    "remember": control_message.Remember(MEMORY),
    "welcome": control_message.Welcome(part=True),
    "refusal": control_message.Refusal("rank 1 is held"),
    "heartbeat": control_message.Heartbeat(),
    "prepare": control_message.Prepare(SPEC, "c0ffee", 2, in_force=False),
    "progress": control_message.Progress(DIGEST, 2**20, 2**40),
    "prepared": control_message.Prepared(DIGEST, loaded=True),
    "prepare failed": control_message.PrepareFailed(DIGEST, "no such model"),
    "forget": control_message.Forget(DIGEST),
    "load": control_message.Load(DIGEST),
    "loaded": control_message.Loaded(DIGEST, STAGE),
    "load failed": control_message.LoadFailed(DIGEST, "no memory"),
    "take": control_message.Take(SPEC),
    "taken": control_message.Taken(DIGEST),
    "form": control_message.Form(2**64 - 1, 3, DIGEST, (("10.0.0.7", 3001), ("::1", 3002))),
    "formed": control_message.Formed(3),
    "epoch failed": control_message.EpochFailed(3, "a link broke"),
    "leaving": control_message.Leaving(),
    "released": control_message.Released("drained"),
}
TOKEN = b"a token of at least 16 bytes"
HELLO = Hello(Role.DATA, 3, EPOCH, "ab" * 32)


def first_hop(name: str) -> bytes:
    return encode_step(STEPS[name], EPOCH)


def second_hop(name: str) -> bytes:
    """The step as stage 0 passes it on, up to its tensor."""
    frame = first_hop(name)
    header = decode_header(frame, EPOCH, FIRST)
    hidden = HIDDEN if STEPS[name].segments else 0
    return pass_on(header, frame[HEADER_BYTES:], TIMES[0], "bfloat16", hidden)


def result(name: str) -> bytes:
    """As the last stage answers the prefill step."""
    frame = second_hop("prefill")
    header = decode_header(frame, EPOCH, SECOND)
    return encode_result(header, frame[HEADER_BYTES:], TIMES[1], RESULTS[name])


def scored_result() -> bytes:
    frame = second_hop("a prompt that is scored")
    header = decode_header(frame, EPOCH, SECOND)
    return encode_result(header, frame[HEADER_BYTES:], TIMES[1], RESULTS["tokens"], SCORED)


def refused_result() -> bytes:
    frame = second_hop("prefill")
    header = decode_header(frame, EPOCH, SECOND)
    return encode_result(header, frame[HEADER_BYTES:], TIMES[1], RESULTS["tokens"], (), REFUSED)


def aborted() -> tuple[bytes, bytes]:
    """The prefill step as stage 0 passes it on without having computed it, and as it comes back."""
    frame = first_hop("prefill")
    header = decode_header(frame, EPOCH, FIRST)
    frame = pass_on_aborted(header, frame[HEADER_BYTES:], TIMES[0])
    header = decode_header(frame, EPOCH, SECOND)
    return frame, encode_result(header, frame[HEADER_BYTES:], TIMES[1], (), aborted=True)


def test_data_frames() -> None:
    found = {"ping": encode_ping(EPOCH).hex()}
    found |= {f"step, {name}, to stage 0": first_hop(name).hex() for name in STEPS}
    found |= {f"step, {name}, to stage 1": second_hop(name).hex() for name in STEPS}
    found |= {f"result, {name}": result(name).hex() for name in RESULTS}
    found["result, a prompt that was scored"] = scored_result().hex()
    found["result, a request is refused"] = refused_result().hex()
    found["step, aborted, to stage 1"], found["result, aborted"] = (one.hex() for one in aborted())
    check_recorded("wire-data-frames", found)


@pytest.mark.parametrize("name", STEPS)
def test_steps_come_out_as_they_went_in(name: str) -> None:
    for frame, limits in ((first_hop(name), FIRST), (second_hop(name), SECOND)):
        header = decode_header(frame, EPOCH, limits)
        assert decode_step(header, frame[HEADER_BYTES:], limits) == STEPS[name]


@pytest.mark.parametrize("name", RESULTS)
def test_results_come_out_as_they_went_in(name: str) -> None:
    frame = result(name)
    header = decode_header(frame, EPOCH, MASTER)
    expected = StepResult(STEPS["prefill"].number, RESULTS[name], TIMES)
    assert decode_result(header, frame[HEADER_BYTES:], MASTER) == expected


def test_results_with_more_than_tokens_come_out_as_they_went_in() -> None:
    for frame, expected in (
        (scored_result(), StepResult(4, RESULTS["tokens"], TIMES, SCORED)),
        (refused_result(), StepResult(2, RESULTS["tokens"], TIMES, refused=REFUSED)),
        (aborted()[1], StepResult(2, (), TIMES, aborted=True)),
    ):
        header = decode_header(frame, EPOCH, MASTER)
        assert decode_result(header, frame[HEADER_BYTES:], MASTER) == expected


def test_control_messages() -> None:
    """JSON behind its length: shown as the text that it is."""
    found: dict[str, list[str]] = {}
    for name, message in MESSAGES.items():
        frame = control_message.encode(message)
        found[name] = [frame[:4].hex(), frame[4:].decode()]
        assert control_message.decode(frame[4:]) == message
    check_recorded("wire-control-messages", found)


async def transcript(
    dialer_token: bytes = TOKEN, spec: str = HELLO.spec_hash, refusal: str = ""
) -> list[str]:
    """What goes over the connection, in both directions; every nonce is the same."""
    said: list[str] = []
    loop = asyncio.get_running_loop()
    dialer, dialer_far = socket.socketpair()
    listener_far, listener = socket.socketpair()
    sockets = (dialer, dialer_far, listener_far, listener)

    async def carry(name: str, source: socket.socket, target: socket.socket) -> None:
        while data := await loop.sock_recv(source, 4096):
            said.append(f"{name}: {data.hex()}")
            await loop.sock_sendall(target, data)

    for end in sockets:
        end.setblocking(False)
    carrying = [
        asyncio.create_task(carry("dialer", dialer_far, listener_far)),
        asyncio.create_task(carry("listener", listener_far, dialer_far)),
    ]
    try:
        async with asyncio.timeout(60):
            await asyncio.gather(
                dial_handshake(dialer, dialer_token, HELLO),
                accept_handshake(
                    listener, TOKEN, lambda hello: refusal or differing_specs(hello, spec)
                ),
                return_exceptions=True,
            )
            # What is still on its way comes before the end.
            for end in (dialer, listener):
                end.shutdown(socket.SHUT_WR)
            await asyncio.gather(*carrying, return_exceptions=True)
    finally:
        for task in carrying:
            task.cancel()
        for end in sockets:
            end.close()
    return joined(said)


def joined(said: Sequence[str]) -> list[str]:
    """Pieces of one side that came one after the other as one: a socket may cut them anywhere."""
    found: list[str] = []
    for line in said:
        side, _, data = line.partition(": ")
        if data and found and found[-1].startswith(f"{side}: "):
            found[-1] += data
        else:
            found.append(line)
    return found


def test_the_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "token_bytes", lambda size=32: bytes(range(size)))
    found = {
        "accepted": asyncio.run(transcript()),
        "another token": asyncio.run(transcript(dialer_token=b"another token of 16 bytes")),
        "another spec": asyncio.run(transcript(spec="cd" * 32)),
        "refused": asyncio.run(transcript(refusal="epoch 1 is over")),
    }
    check_recorded("wire-handshake", found)


def test_hellos() -> None:
    hellos = {
        "control": Hello(Role.CONTROL, 2, NO_EPOCH, NO_SPEC),
        "data": HELLO,
        "return": Hello(Role.RETURN, 3, EPOCH, "ab" * 32),
    }
    frames = {name: hello.encode(bytes(range(32))) for name, hello in hellos.items()}
    assert {name: Hello.decode(frame) for name, frame in frames.items()} == hellos
    check_recorded("wire-hellos", {name: frame.hex() for name, frame in frames.items()})
