"""One stage's loop between two real data links: what it does while there is nothing to compute."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.sampling_parameters import SamplingParameters
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel
from runner.stage.process import compute_loop
from runner.stage.process.compute_loop import ComputeLoop
from runner.stage.process.epoch_links import EpochLinks, Stop
from runner.steps import Admission, Segment, Step
from runner.transport.data_link import TcpLink
from runner.transport.frames import HEADER_BYTES, Epoch, Limits, Operation, decode_header
from runner.transport.result_frame import decode_result
from runner.transport.step_frame import encode_step
from tests.waiting import wait_for

EPOCH = Epoch(1, 1)
GREEDY = SamplingParameters(temperature=0)


class Master:
    """The two ends of a single stage's links, as the master holds them."""

    def __init__(self, model: StageModel) -> None:
        self.given_back: list[float] = []
        self._sending, incoming = socket.socketpair()
        self._receiving, outgoing = socket.socketpair()
        self._results = Limits(Operation.RESULT, 1, 64, 64, 0, model.vocab_size, 256)
        steps = Limits(Operation.STEP, 0, 64, 64, 0, model.vocab_size, 256)
        self.loop = ComputeLoop(0, model, "cpu", lambda _epoch, what: pytest.fail(what))
        self.links = EpochLinks(
            EPOCH,
            TcpLink(incoming, EPOCH, steps),
            TcpLink(outgoing, EPOCH, steps),
            limits=steps,
            depth=2,
            deliver=self.loop.inbox.put,
            fail=lambda _epoch, what: pytest.fail(what),
        )
        self._thread = threading.Thread(target=self.loop.run)
        self.links.start()
        self._thread.start()

    def send(self, step: Step) -> None:
        self._sending.sendall(encode_step(step, EPOCH))

    def run(self, step: Step) -> list[int]:
        """The token ids that were sampled."""
        self.send(step)
        while True:
            header = decode_header(self._read(HEADER_BYTES), EPOCH, self._results)
            body = self._read(header.body_bytes)
            if header.operation != Operation.PING:
                return [item.token_id for item in decode_result(header, body, self._results).tokens]

    def _read(self, size: int) -> bytes:
        return self._receiving.recv(size, socket.MSG_WAITALL) if size else b""

    def end(self) -> None:
        self.loop.inbox.put(Stop())
        self._thread.join(10)
        self.links.close()
        self._sending.close()
        self._receiving.close()


@pytest.fixture
def master(small_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Master]:
    monkeypatch.setattr(compute_loop, "BEAT_INTERVAL_S", 0.02)
    monkeypatch.setattr(compute_loop, "IDLE_AFTER_S", 0.3)
    master = Master(StageModel.load(Checkpoint(small_llama), (0, 6)))
    monkeypatch.setattr(
        compute_loop, "give_back_freed", lambda: master.given_back.append(time.monotonic())
    )
    yield master
    master.end()


def test_a_step_that_outlives_its_epoch_is_stuck_only_after_a_while(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute_loop, "STUCK_AFTER_S", 0.3)
    began, end = threading.Event(), threading.Event()

    def long_step(*_: object) -> None:
        began.set()
        end.wait(10)

    monkeypatch.setattr(master.loop, "_answer", long_step)
    master.send(Step(1, (), []))
    assert began.wait(5)
    time.sleep(0.6)
    assert not master.loop.stuck()  # the epoch is in force: for the master to judge
    master.links.halt()
    assert not master.loop.stuck()
    wait_for(master.loop.stuck, 5, "stuck")
    end.set()
    wait_for(lambda: not master.loop.stuck(), 5, "turning again")


def test_freed_memory_is_given_back_once_when_it_has_been_idle(master: Master) -> None:
    time.sleep(0.5)
    assert not master.given_back  # nothing was computed yet
    admission = Admission(1, 64, 3, 0, 0, GREEDY)
    tokens = master.run(Step(0, (Segment(1, 0, 3, 3, True),), [5, 6, 7], (admission,)))
    for position in range(3, 23):
        time.sleep(0.03)
        busy = Step(position, (Segment(1, position, 1, position + 1, True),), tokens)
        tokens = master.run(busy)
        assert len(tokens) == 1
    assert not master.given_back
    last = time.monotonic()
    for number in range(30, 50):  # the master asks an idle group whether it lives
        time.sleep(0.03)
        assert master.run(Step(number, (), [])) == []
    wait_for(lambda: master.given_back, 5, "given back")
    assert master.given_back[0] - last > 0.25
    time.sleep(0.5)
    assert len(master.given_back) == 1
