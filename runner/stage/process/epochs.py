"""A stage's part in each epoch, on the control thread's event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from queue import SimpleQueue

from contract.specs import GroupSpec, StageSpec, spec_hash
from runner.stage.process.epoch_links import EpochLinks
from runner.stage.process.work import NewEpoch, Work
from runner.transport.connection import Proven
from runner.transport.control import EpochFailed, Form, Formed, Message, StageInfo
from runner.transport.data_link import TcpLink
from runner.transport.dialling import EPOCH_DELAYS_S, BackOff, dial_until_answered
from runner.transport.frames import Epoch, Limits
from runner.transport.handshake import MASTER_RANK, Hello, Role, differing_specs
from web.logs import note_in_logs

logger = logging.getLogger(__name__)


class Epochs:
    """Those that this stage takes part in, one after the other; each is forming, or formed."""

    def __init__(
        self,
        stage: StageSpec,
        token: bytes,
        inbox: SimpleQueue[Work],
        *,
        send: Callable[[Message], None],
        fail: Callable[[Epoch, str], None],
    ) -> None:
        self._stage, self._token, self._inbox = stage, token, inbox
        self._rank = stage.rank
        self._send, self._fail = send, fail
        self._spec: GroupSpec | None = None
        self._info: StageInfo | None = None
        self._epoch: Epoch | None = None
        self._predecessor: asyncio.Future[socket.socket] | None = None
        self._task: asyncio.Task[None] | None = None
        self._links: EpochLinks | None = None

    @property
    def active(self) -> bool:
        return self._epoch is not None

    def attach(self, spec: GroupSpec, info: StageInfo) -> None:
        """The weights of this spec are loaded."""
        self._spec, self._info = spec, info

    def take(self, spec: GroupSpec) -> None:
        """The weights go by another spec; an epoch goes on, and steps within its limits are
        accepted too."""
        self._spec = spec
        if self._links is not None:
            self._links.accept(self._limits())

    def detach(self, reason: str) -> None:
        """The weights are going."""
        self.dissolve(None, reason)
        self._spec = self._info = None

    def _limits(self) -> Limits:
        spec, info = self._spec, self._info
        assert spec is not None
        assert info is not None
        return Limits.of_stage(
            spec,
            self._rank,
            hidden=info.hidden_size,
            vocab=info.vocab_size,
            positions=max(info.max_positions, spec.max_model_len or 0),
        )

    def form(self, message: Form) -> None:
        """Leave the epoch before, whatever state it is in, and form this one."""
        self.dissolve(None, "a newer epoch is formed")
        if self._spec is None or spec_hash(self._spec) != message.spec_hash:
            reason = f"rank {self._rank} has no weights of spec {message.spec_hash[:12]}"
            self._send(EpochFailed(message.counter, reason))
            return
        self._epoch = Epoch(message.master, message.counter)
        note_in_logs("epoch", message.counter)
        self._predecessor = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._form(self._epoch, self._predecessor, message))

    def dissolve(self, counter: int | None, reason: str) -> None:
        """End the epoch (`counter` None: whichever it is)."""
        if self._epoch is None or counter not in (None, self._epoch.counter):
            return
        logger.info("epoch %s is over: %s", self._epoch, reason)
        self._epoch = None
        if self._task is not None:
            self._task.cancel()
        if self._predecessor is not None and self._predecessor.done():
            _close_result(self._predecessor)
        self._task = self._predecessor = None
        if self._links is not None:
            self._links.close()
            self._links = None

    def report_failure(self, epoch: Epoch, message: EpochFailed) -> None:
        """A thread found the epoch broken: tell the master, which ends it for everybody."""
        if epoch == self._epoch:
            self._send(message)

    def report_end(self, reason: str) -> None:
        """This process ends at once, whichever epoch it is in."""
        if self._epoch is not None:
            self._send(EpochFailed(self._epoch.counter, reason))

    def judge(self, hello: Hello) -> str:
        """Why a data connection is refused, "" accepts."""
        before = self._rank - 1 if self._rank else MASTER_RANK
        if hello.role != Role.DATA:
            return f"role = {hello.role.name}: a stage accepts data connections only"
        if hello.epoch != self._epoch or self._predecessor is None:
            return f"epoch {hello.epoch} is not this stage's, which is {self._epoch or 'none'}"
        assert self._spec is not None
        if differing := differing_specs(hello, spec_hash(self._spec)):
            return differing
        if hello.rank != before:
            return f"rank {hello.rank} dials rank {self._rank}, which is fed by rank {before}"
        if self._predecessor.done():
            return f"rank {self._rank} is fed already in epoch {self._epoch}"
        return ""

    async def deliver(self, proven: Proven) -> None:
        """A data connection that judge accepted; the epoch may have passed meanwhile."""
        waiting = self._predecessor
        if waiting is None or waiting.done() or proven.hello.epoch != self._epoch:
            proven.connection.close()
            return
        waiting.set_result(proven.connection)

    async def _form(
        self, epoch: Epoch, predecessor: asyncio.Future[socket.socket], message: Form
    ) -> None:
        successor = asyncio.create_task(self._dial_successor(epoch, message))
        try:
            await self._empty_the_cache()
            incoming, outgoing = await predecessor, await successor
        except asyncio.CancelledError:
            successor.cancel()
            successor.add_done_callback(_close_result)
            raise
        assert self._spec is not None
        limits = self._limits()
        self._predecessor = self._task = None
        self._links = EpochLinks(
            epoch,
            TcpLink(incoming, epoch, limits),
            TcpLink(outgoing, epoch, limits),
            limits=limits,
            # More than the master ever has in flight, so that a slow stage never stops the
            # pings of the one before it.
            depth=len(self._spec.ranks) + 3,
            deliver=self._inbox.put,
            fail=self._fail,
        )
        self._links.start()
        self._send(Formed(epoch.counter))

    async def _empty_the_cache(self) -> None:
        """Wait until the compute loop has left the old epoch and dropped its KV."""
        loop = asyncio.get_running_loop()
        empty: asyncio.Future[None] = loop.create_future()

        def done() -> None:
            loop.call_soon_threadsafe(_set_done, empty)

        self._inbox.put(NewEpoch(done))
        await empty

    async def _dial_successor(self, epoch: Epoch, message: Form) -> socket.socket:
        """The next rank, the last rank's is the master; tries until the epoch is given up."""
        following = self._rank + 1
        digest = message.spec_hash
        if following < len(message.addresses):
            host, port = message.addresses[following]
            hello = Hello(Role.DATA, self._rank, epoch, digest)
        else:
            host, port = self._stage.master_host, self._stage.master_port
            hello = Hello(Role.RETURN, self._rank, epoch, digest)
        back_off = BackOff(*EPOCH_DELAYS_S)
        return await dial_until_answered(host, port, self._token, hello, back_off, logger.info)


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _close_result(future: asyncio.Future[socket.socket]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()
