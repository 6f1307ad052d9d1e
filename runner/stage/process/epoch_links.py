"""A stage's place in one epoch's pipeline: a receiving and a sending thread around the compute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from runner.errors import ProtocolError
from runner.stage.process.work import Arrival
from runner.transport.data_link import TcpLink, TensorBuffer
from runner.transport.frames import Epoch, Limits, encode_ping
from runner.transport.silence import PING_INTERVAL_S

INLINE_BYTES = 128 * 1024


_Answer = tuple[bytes, memoryview | None, TensorBuffer]  # and the buffer it came from


class EpochLinks:
    """Two data links of one epoch. `fail` is called once, from a thread, when one breaks.

    At most `depth` steps are held between receiving and having been sent on: each takes a buffer,
    and the receiver waits while none is free.
    """

    def __init__(
        self,
        epoch: Epoch,
        incoming: TcpLink,
        outgoing: TcpLink,
        *,
        limits: Limits,
        depth: int,
        deliver: Callable[[Arrival], None],
        fail: Callable[[Epoch, str], None],
    ) -> None:
        self.epoch = epoch
        self._incoming, self._outgoing = incoming, outgoing
        self._deliver, self._fail = deliver, fail
        self.halted_at: float | None = None
        self._closed = threading.Event()
        self._free: SimpleQueue[TensorBuffer | None] = SimpleQueue()
        for _ in range(depth):
            self._free.put(TensorBuffer(limits))
        self._to_send: SimpleQueue[_Answer | None] = SimpleQueue()
        # Steps given to the sending thread, and sent by it; each has one writer. While they are
        # equal, the compute thread sends by itself, and only a ping can be in its way.
        self._queued = self._sent = 0
        self._wire = threading.Lock()
        name = f"epoch-{epoch.counter}"
        self._threads = [
            threading.Thread(target=self._receive, name=f"receive-{name}", daemon=True),
            threading.Thread(target=self._send, name=f"send-{name}", daemon=True),
        ]

    @property
    def open(self) -> bool:
        return self.halted_at is None

    def accept(self, limits: Limits) -> None:
        """Steps within these limits too, from now on."""
        self._incoming.accept(limits)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def answer(self, arrival: Arrival, front: bytes, tensor: memoryview | None) -> None:
        """Send what came of an arrival; its buffer is used again once this has left.

        Called by the compute thread only. What is small goes out at once: waking the sending
        thread takes longer than the copy into the socket. All else, and what comes behind it,
        is left to that thread, so that it overlaps the next step.
        """
        buffer = arrival.frame.buffer
        size = len(front) + (len(tensor) if tensor is not None else 0)
        if size > INLINE_BYTES or self._queued != self._sent:
            self._queued += 1
            self._to_send.put((front, tensor, buffer))
            return
        try:
            with self._wire:
                self._outgoing.send(front, tensor)
            self._free.put(buffer)
        except ProtocolError as error:
            self._break("the link to the rank after", error)

    def halt(self) -> None:
        """Compute nothing more. The links stay until the master ends the epoch: a closed one would
        make the neighbours report a fault of theirs before the true one is told."""
        if self.halted_at is None:
            self.halted_at = time.monotonic()

    def close(self) -> None:
        """Shut both links and let the threads end; safe to call twice and from any thread."""
        self.halt()
        self._closed.set()
        self._incoming.shutdown()
        self._outgoing.shutdown()
        self._free.put(None)
        self._to_send.put(None)

    def _receive(self) -> None:
        try:
            while (buffer := self._free.get()) is not None:
                self._deliver(Arrival(self._incoming.receive(buffer), self))
        except ProtocolError as error:
            self._break("the link from the rank before", error)
        self._closed.wait()
        self._incoming.close()

    def _send(self) -> None:
        ping = encode_ping(self.epoch)
        try:
            while True:
                try:
                    item = self._to_send.get(timeout=PING_INTERVAL_S)
                except Empty:
                    with self._wire:
                        self._outgoing.send(ping)
                    continue
                if item is None:
                    break
                front, tensor, buffer = item
                self._outgoing.send(front, tensor)
                self._free.put(buffer)
                self._sent += 1
        except ProtocolError as error:
            self._break("the link to the rank after", error)
        self._closed.wait()
        with self._wire:
            self._outgoing.close()

    def _break(self, which: str, error: ProtocolError) -> None:
        if self.open:
            self.halt()
            self._fail(self.epoch, f"{which}: {error}")
