"""The life of a group, whatever computes in it: ranks join, form an epoch, lose it, form again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import socket
import time
from abc import ABC, abstractmethod
from typing import Literal

from contract.specs import GroupSpec, MasterSpec
from runner.master.group.barren_epochs import BarrenEpochs
from runner.master.group.exchange import Exchange
from runner.master.group.formation import Loss
from runner.master.group.history import History
from runner.master.group.keeper import SpecKeeper
from runner.master.group.membership import Member, Membership
from runner.master.group.own_part import MakeReady, nothing_more
from runner.master.group.spec_changes import alike
from runner.master.group.swap import Swap
from runner.master.own_fault import OnFault, own_work, raise_fault
from runner.transport.connection import Proven, ProvingListener
from runner.transport.control import (
    EpochFailed,
    Formed,
    Join,
    Leaving,
    Message,
    Released,
    Remember,
    Served,
    StageInfo,
)
from runner.transport.dialling import BackOff
from runner.transport.handshake import Hello
from web.logs import note_in_logs

logger = logging.getLogger(__name__)

State = Literal["starting", "forming", "ready", "failed"]
FIRST_DELAY_S, LAST_DELAY_S = 0.2, 5.0
# Whoever ends the whole stack signals rank 0's process within this time of the others.
LEAVING_GRACE_S = 0.5


class GroupLife(ABC):
    """`state` is starting (waiting for ranks), forming, ready or failed (three epochs in a row, it
    waits before it tries again); `reason` says why it is not ready. `history` has the epoch in
    force or last tried, and what became of those before. A fault in its own tasks goes to
    `on_fault`."""

    _exchange: Exchange

    def __init__(
        self,
        master: MasterSpec,
        token: bytes,
        file: GroupSpec | None,
        *,
        make_ready: MakeReady = nothing_more,
        on_fault: OnFault = raise_fault,
    ) -> None:
        self._token, self._on_fault = token, on_fault
        self.state: State = "starting"
        self.reason = "starting"
        self.history = History(time.time())
        self._id = secrets.randbits(64)
        self._change = asyncio.Event()
        self._specs = SpecKeeper(
            master,
            file,
            make_ready=make_ready,
            changed=self._specs_changed,
            taken=self._taken,
            ended=self.history.swap_ended,
            on_fault=on_fault,
        )
        self._members = Membership(
            self.history,
            joined=self._specs.joined,
            refused=self._change.set,
            lost=self._lose_rank,
            received=self._received,
        )
        self._specs.attach(self._members)
        self._forming: Served | None = None  # what the epoch in force or last tried is of
        self._processes: frozenset[str] = frozenset()  # those that it was tried with
        self._loss: asyncio.Future[Loss] | None = None
        self._formed: set[int] = set()
        self._barren = BarrenEpochs()
        self._retry_at = 0.0
        self._draining = self._ending = False
        self._tasks: list[asyncio.Task[None]] = []

    # What differs

    @abstractmethod
    def _judge(self, hello: Hello) -> str:
        """Why a connection is refused, "" accepts."""

    @abstractmethod
    async def _deliver(self, proven: Proven) -> None:
        """Take a connection that was accepted."""

    @abstractmethod
    def _forming_limit_s(self, served: Served) -> float:
        """How long one attempt may take."""

    @abstractmethod
    async def _form(self, served: Served) -> None:
        """One attempt: have every rank form the epoch, and return once all have."""

    @abstractmethod
    def _begin(self, served: Served) -> None:
        """The epoch is formed: let requests in."""

    @abstractmethod
    def _end(self, served: Served, loss: Loss) -> None:
        """It is lost, and the history knows; the next one is formed after this."""

    @property
    def _missing(self) -> str:
        """What it waits for before an epoch can be tried, "" for nothing."""
        return self._specs.reason

    async def _not_formed(self, loss: Loss) -> None:
        """An attempt came to nothing: what is done before the next, beside the back-off."""

    def _close_epoch(self) -> None:
        """Close what belongs to the epoch alone, at once."""

    def _change_limits(self, wanted: Served) -> None:
        """Another spec is in force that the epoch goes on under."""

    def _taken(self) -> None:
        """Every rank accepts what the spec in force allows."""

    # Start and end

    async def _open(self, listening: socket.socket) -> None:
        incoming = ProvingListener(listening, self._token, self._judge, self._deliver)
        for work in (incoming.serve(), self._specs.decide(), self._live()):
            task = asyncio.create_task(work)
            task.add_done_callback(self._check_task)
            self._tasks.append(task)

    async def stop(self) -> None:
        """Tell the ranks that all is drained, and close everything."""
        self._ending = True
        self._set_state("starting", "rank 0's process is ending")
        for member in list(self._members.members.values()):
            member.channel.send(Released("drained"))
            member.channel.close()
        await self._specs.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._close_epoch()

    def drain(self) -> None:
        """It is ending: ranks that announce their leaving go on until stop()."""
        self._draining = True

    def abandon_epoch(self, reason: str) -> None:
        """The epoch cannot go on: it does not step any more."""
        self._lose(reason)

    def note_progress(self) -> None:
        """A token advanced: this epoch is not barren."""
        self._barren.progressed()

    # What is asked of it

    @property
    def retry_after_s(self) -> int:
        """In how many seconds to ask again, at most, while not ready."""
        if self.state != "failed":
            return 1
        return max(1, math.ceil(self._retry_at - asyncio.get_running_loop().time()))

    @property
    def epoch(self) -> int:
        """The counter of the epoch in force or last tried."""
        return self.history.epoch

    @property
    def served(self) -> Served | None:
        """What is in force, None while nothing is."""
        return self._specs.specs.in_force

    @property
    def swap(self) -> Swap | None:
        """The one that runs, or the last one."""
        return self._specs.specs.swap

    async def push(self, spec: GroupSpec) -> Swap | None:
        """Serve another spec; as SpecKeeper.push."""
        return await self._specs.push(spec)

    def stages(self) -> tuple[StageInfo | None, ...]:
        """By rank of the spec in force; None where a rank has not joined or prepared."""
        return self._members.stages(self._ranks)

    def joins(self) -> tuple[Join | None, ...]:
        """By rank of the spec in force, what its process said of itself; None where none is."""
        return self._members.joins(self._ranks)

    @property
    def _ranks(self) -> int:
        return 0 if self.served is None else len(self.served.spec.ranks)

    # The life of epochs

    @own_work
    def _specs_changed(self) -> None:
        """Do what follows from what the keeper of specs has heard; called again and again."""
        self._change.set()
        specs = self._specs.specs
        self.history.serves(specs.in_force)
        self._exchange.follow()
        wanted, formed = specs.to_form, self._forming
        if formed is None or wanted is None or formed is wanted:
            return
        if not alike(formed, wanted):
            self._lose("another spec is loaded", announced=True)
            return
        self._forming = wanted
        self._change_limits(wanted)

    async def _live(self) -> None:
        back_off = BackOff(FIRST_DELAY_S, LAST_DELAY_S)
        while True:
            await self._wait_for_ranks()
            if not await self._try_to_form():
                await back_off.wait()
                continue
            back_off.reset()
            await self._serve()

    async def _wait_for_ranks(self) -> None:
        while missing := self._missing:
            self._set_state("starting", missing)
            self._change.clear()
            await self._change.wait()

    async def _try_to_form(self) -> bool:
        """One attempt at a new epoch."""
        served = self._specs.specs.to_form
        assert served is not None
        self._forming, self._processes = served, self._members.instances()
        self.history.serves(self.served)
        self.history.trying()
        self._remember()
        note_in_logs("epoch", self.epoch)
        if not self.reason or self.state == "starting":
            self._set_state("forming", f"forming epoch {self.epoch}")
        self._loss = asyncio.get_running_loop().create_future()
        self._formed.clear()
        self._barren.begin()
        if await self._formed_in_time(served, self._loss):
            return True
        loss = self._loss.result()
        if served is not self.served:
            self._specs.not_answered(served, loss.reason)
        self._set_state("forming", f"epoch {self.epoch} was not formed: {loss.reason}")
        await self._not_formed(loss)
        return False

    async def _formed_in_time(self, served: Served, lost: asyncio.Future[Loss]) -> bool:
        """False: `lost` says why not."""
        limit_s = self._forming_limit_s(served)
        forming = asyncio.create_task(self._form(served))
        waiting: set[asyncio.Future[object]] = {forming, lost}  # type: ignore[arg-type]
        try:
            await asyncio.wait(waiting, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if forming.done() and not lost.done():
                forming.result()
                return True
        finally:
            forming.cancel()
        await asyncio.gather(forming, return_exceptions=True)
        unformed = sorted({*range(len(served.spec.ranks))} - self._formed)
        self._lose(f"not formed within {limit_s:g} s: ranks {unformed} did not answer")
        return False

    async def _all_formed(self, ranks: int) -> None:
        while len(self._formed) < ranks:
            self._change.clear()
            await self._change.wait()

    async def _serve(self) -> None:
        """From formed to lost, and the pause after a loss too many."""
        served = self._forming
        assert served is not None
        assert self._loss is not None
        self.history.formed(time.time())
        self._set_state("ready", "")
        self._begin(served)
        loss = await self._loss
        self.history.epoch_lost(loss.reason, time.time())
        self._remember()
        self._end(served, loss)
        await self._pause_when_barren(loss)

    async def _pause_when_barren(self, loss: Loss) -> None:
        """After three in a row that brought no token: wait in the state failed, until then or until
        a process joins that none of those was tried with."""
        pause_s = self._barren.lost()
        if not pause_s:
            return
        failed = (
            f"{self._barren.in_a_row} groups in a row failed before any token advanced, the last"
            f" one: {loss.reason}"
        )
        self._retry_at = asyncio.get_running_loop().time() + pause_s
        wait = f"; the next try is in {pause_s:g} s, or when a rank's process is a new one"
        self._set_state("failed", failed + wait)
        self.history.gave_up(self._barren.in_a_row, time.time())
        self._remember()
        failed_of = self._forming
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                while (
                    self._members.instances() <= self._processes
                    and self._specs.specs.to_form is failed_of
                ):
                    self._change.clear()
                    await self._change.wait()
        self._set_state("forming", failed)

    def _remember(self) -> None:
        """Have the ranks keep it for the next process of rank 0."""
        self._members.broadcast(Remember(self.history.totals()))

    def _lose_rank(self, rank: int, how: str, why: str) -> None:
        if not (self._draining or self._ending):
            self._specs.lost(rank, why)
            self.history.rank_lost(rank, how, time.time())
        self._lose(f"rank {rank}: {why}")

    @own_work
    def _lose(self, reason: str, *, announced: bool = False) -> None:
        """End the epoch, at once; what follows of it is done by our own task."""
        if self._loss is None or self._loss.done():
            return
        if announced:
            self._barren.excuse()
        self._close_epoch()
        self._loss.set_result(Loss(reason, announced))
        self._set_state("forming", f"epoch {self.epoch} was lost: {reason}")
        self._members.broadcast(EpochFailed(self.epoch, reason))

    def _received(self, member: Member, message: Message) -> None:
        if self._specs.received(member, message):
            return
        if isinstance(message, Formed) and message.counter == self.epoch:
            self._formed.add(member.rank)
            self._change.set()
        elif isinstance(message, EpochFailed) and message.counter == self.epoch:
            self._lose(f"rank {member.rank}: {message.reason}")
        elif isinstance(message, Leaving):
            loop = asyncio.get_running_loop()
            loop.call_later(LEAVING_GRACE_S, self._let_go, member)

    @own_work
    def _let_go(self, member: Member) -> None:
        """A rank wants to leave: alone it may, with the whole stack when all is drained."""
        if self._draining or self._members.members.get(member.rank) is not member:
            return
        member.leaving = True
        self.history.rank_lost(member.rank, "was asked to end", time.time())
        self._lose(f"rank {member.rank} is ending", announced=True)
        member.channel.send(Released("the group forms again without this process"))
        self._change.set()

    def _set_state(self, state: State, reason: str) -> None:
        if (state, reason) != (self.state, self.reason):
            logger.info("group %s%s", state, f": {reason}" if reason else "")
        self.state, self.reason = state, reason

    def _check_task(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fault(error)
