"""One stage's loop between two real data links, without a process around it."""

from __future__ import annotations

import socket
import threading
from queue import SimpleQueue

from runner.stage.model.stage_model import StageModel
from runner.stage.process.compute_loop import ComputeLoop
from runner.stage.process.epoch_links import EpochLinks
from runner.stage.process.work import Stop, Work
from runner.steps import Step, StepResult
from runner.transport.data_link import TcpLink
from runner.transport.frames import HEADER_BYTES, Epoch, Limits, Operation, decode_header
from runner.transport.result_frame import decode_result
from runner.transport.step_frame import encode_step

EPOCH = Epoch(1, 1)


class LoneStage:
    """The compute loop of a single stage, and the two ends of its links as the master holds them.

    `failures` are the epoch's, `ends` what would have ended a process.
    """

    def __init__(self, model: StageModel) -> None:
        self.given_back: list[int] = []
        self.failures: list[str] = []
        self.ends: list[str] = []
        self._sending, incoming = socket.socketpair()
        self._receiving, outgoing = socket.socketpair()
        self._results = Limits(Operation.RESULT, 1, 64, 64, 0, model.vocab_size, 256)
        steps = Limits(Operation.STEP, 0, 64, 64, 0, model.vocab_size, 256)
        self.inbox: SimpleQueue[Work] = SimpleQueue()
        self.loop = ComputeLoop(
            0,
            model,
            "cpu",
            inbox=self.inbox,
            fail=lambda _epoch, what: self.failures.append(what),
            end_process=self.ends.append,
        )
        self.links = EpochLinks(
            EPOCH,
            TcpLink(incoming, EPOCH, steps),
            TcpLink(outgoing, EPOCH, steps),
            limits=steps,
            depth=2,
            deliver=self.inbox.put,
            fail=lambda _epoch, what: self.failures.append(what),
        )
        self._thread = threading.Thread(target=self.loop.run)
        self.links.start()
        self._thread.start()

    def send(self, step: Step) -> None:
        self._sending.sendall(encode_step(step, EPOCH))

    def run(self, step: Step) -> list[int]:
        """The token ids that were sampled."""
        return [item.token_id for item in self.answer(step).tokens]

    def answer(self, step: Step) -> StepResult:
        self.send(step)
        while True:
            header = decode_header(self._read(HEADER_BYTES), EPOCH, self._results)
            body = self._read(header.body_bytes)
            if header.operation != Operation.PING:
                return decode_result(header, body, self._results)

    def _read(self, size: int) -> bytes:
        return self._receiving.recv(size, socket.MSG_WAITALL) if size else b""

    def end(self) -> None:
        self.inbox.put(Stop())
        self._thread.join(60)
        self.links.close()
        self._sending.close()
        self._receiving.close()
