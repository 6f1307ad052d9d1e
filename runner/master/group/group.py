"""The life of the rank group: stages join, form an epoch, lose it, form again.

The listener (the engine) is called from this module's own task or from a connection's data, never
from within a call that it makes itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
from typing import Literal

from contract.specs import GroupSpec, MasterSpec
from runner.master.group.barren_epochs import BarrenEpochs
from runner.master.group.exchange import Exchange
from runner.master.group.formation import Formation, GroupListener, Loss
from runner.master.group.history import History
from runner.master.group.incoming import refusal
from runner.master.group.keeper import SpecKeeper
from runner.master.group.membership import Member, Membership
from runner.master.group.own_part import MakeReady, nothing_more
from runner.master.group.pipeline_ends import PipelineEnds
from runner.master.group.spec_changes import alike
from runner.master.group.swap import Swap
from runner.master.own_fault import OnFault, own_work, raise_fault
from runner.steps import Step, StepResult
from runner.transport.connection import Proven, ProvingListener
from runner.transport.control import (
    EpochFailed,
    Form,
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
from runner.transport.frames import Epoch, Limits
from runner.transport.handshake import MASTER_RANK, Hello, Role
from web.listener import bind
from web.logs import note_in_logs

logger = logging.getLogger(__name__)

State = Literal["starting", "forming", "ready", "failed"]
FORMING_LIMIT_S = 10.0  # a stage may be in the middle of a long step of the epoch before
FIRST_DELAY_S, LAST_DELAY_S = 0.2, 5.0
# Whoever ends the whole stack signals the master within this time of the stages.
LEAVING_GRACE_S = 0.5


class Group:
    """`state` is starting (waiting for stages), forming, ready or failed (three groups in a row, it
    waits before it tries again); `reason` says why it is not ready. `history` has the epoch in
    force or last tried, and what became of those before. A fault in its own tasks goes to
    `on_fault`."""

    _listener: GroupListener
    _exchange: Exchange

    def __init__(
        self,
        spec: MasterSpec,
        token: bytes,
        file: GroupSpec | None,
        *,
        make_ready: MakeReady = nothing_more,
        on_fault: OnFault = raise_fault,
    ) -> None:
        self._master, self._token, self._on_fault = spec, token, on_fault
        self.state: State = "starting"
        self.reason = "starting"
        self.history = History(time.time())
        self._master_id = secrets.randbits(64)
        self._change = asyncio.Event()
        self._keeper = SpecKeeper(
            spec,
            file,
            make_ready=make_ready,
            changed=self._specs_changed,
            taken=self._taken,
            ended=self.history.swap_ended,
            on_fault=on_fault,
        )
        self._membership = Membership(
            self.history,
            joined=self._keeper.joined,
            refused=self._change.set,
            lost=self._lose_rank,
            received=self._received,
        )
        self._keeper.attach(self._membership)
        self._forming: Served | None = None  # what the epoch in force or last tried is of
        self._ends: PipelineEnds | None = None
        self._loss: asyncio.Future[Loss] | None = None
        self._formed: set[int] = set()
        self._barren = BarrenEpochs()
        self._retry_at = 0.0
        self._draining = self._ending = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, listener: GroupListener) -> None:
        """Listen on master_port, and tell `listener`; raises PortError naming the port."""
        self._listener = listener
        self._exchange = Exchange(self._keeper, self.history, listener)
        listening = bind(self._master.bind_address, self._master.master_port)
        incoming = ProvingListener(listening, self._token, self._judge, self._deliver)
        for work in (
            incoming.serve(),
            self._keeper.decide(),
            self._live(),
        ):
            task = asyncio.create_task(work)
            task.add_done_callback(self._check_task)
            self._tasks.append(task)

    async def stop(self) -> None:
        """Tell the stages that all is drained, and close everything."""
        self._ending = True
        self._set_state("starting", "the master is ending")
        members = list(self._membership.members.values())
        for member in members:
            member.channel.send(Released("drained"))
            member.channel.close()
        await self._keeper.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._ends is not None:
            self._ends.close()
            self._ends = None

    def drain(self) -> None:
        """The master is ending: stages that announce their leaving keep stepping until stop()."""
        self._draining = True

    def submit(self, step: Step) -> None:
        """Send a step on its way; only while ready. Never blocks."""
        assert self.state == "ready"
        assert self._ends is not None
        self._ends.send(step)

    def abandon_epoch(self, reason: str) -> None:
        """The engine gives the epoch up, for a step that has not come back in time."""
        self._lose(reason)

    def note_progress(self) -> None:
        """A token advanced: this epoch is not barren."""
        self._barren.progressed()

    @property
    def retry_after_s(self) -> int:
        """In how many seconds to ask again, at most, while not ready."""
        if self.state != "failed":
            return 1
        return max(1, math.ceil(self._retry_at - asyncio.get_running_loop().time()))

    @property
    def served(self) -> Served | None:
        """What is in force, None while nothing is."""
        return self._keeper.specs.in_force

    @property
    def swap(self) -> Swap | None:
        """The one that runs, or the last one."""
        return self._keeper.specs.swap

    @property
    def specs_in_use(self) -> tuple[Served, ...]:
        """What is in force, and what is on its way in once its commit is known."""
        swap = self._keeper.specs.running
        both = self.served, swap.served if swap is not None else None
        return tuple(item for item in both if item is not None)

    async def push(self, spec: GroupSpec) -> Swap | None:
        """Serve another spec; as SpecKeeper.push."""
        return await self._keeper.push(spec)

    def answered(self) -> None:
        """The epoch of a spec that is not in force yet has computed a token: it is now."""
        self._keeper.answered()
        self._remember()

    def not_answered(self, reason: str) -> None:
        """It has not."""
        if self._forming is not None:
            self._keeper.not_answered(self._forming, reason)

    def stages(self) -> tuple[StageInfo | None, ...]:
        """By rank of the spec in force; None where a rank has not joined or loaded."""
        return self._membership.stages(self._ranks)

    def joins(self) -> tuple[Join | None, ...]:
        """By rank of the spec in force, what its process said of itself; None where none is."""
        return self._membership.joins(self._ranks)

    @property
    def _ranks(self) -> int:
        return 0 if self.served is None else len(self.served.spec.ranks)

    @property
    def epoch(self) -> int:
        """The counter of the epoch in force or last tried."""
        return self.history.epoch

    @own_work
    def _specs_changed(self) -> None:
        """Do what follows from what the keeper has heard; called again and again."""
        self._change.set()
        specs = self._keeper.specs
        self.history.serves(specs.in_force)
        self._exchange.follow()
        wanted, formed = specs.to_form, self._forming
        if formed is None or wanted is None or formed is wanted:
            return
        if not alike(formed, wanted):
            self._lose("another spec is loaded", announced=True)
            return
        self._forming = wanted
        if self._ends is not None:
            self._ends.accept(self._limits(wanted))

    @own_work
    def _taken(self) -> None:
        """Every stage accepts what the spec in force allows."""
        if self.state == "ready" and self.served is not None:
            self._listener.take(self.served)

    async def _live(self) -> None:
        back_off = BackOff(FIRST_DELAY_S, LAST_DELAY_S)
        while True:
            await self._wait_for_stages()
            if not await self._try_to_form():
                await back_off.wait()
                continue
            back_off.reset()
            await self._serve()

    async def _wait_for_stages(self) -> None:
        while missing := self._keeper.reason:
            self._set_state("starting", missing)
            self._change.clear()
            await self._change.wait()

    async def _try_to_form(self) -> bool:
        """One attempt at a new epoch."""
        served = self._keeper.specs.to_form
        assert served is not None
        self._forming = served
        self.history.serves(self._keeper.specs.in_force)
        self.history.trying()
        self._remember()
        note_in_logs("epoch", self.epoch)
        epoch = Epoch(self._master_id, self.epoch)
        if not self.reason or self.state == "starting":
            self._set_state("forming", f"forming epoch {self.epoch}")
        self._loss = asyncio.get_running_loop().create_future()
        self._formed.clear()
        self._barren.begin()
        forming = asyncio.create_task(self._form(epoch, served))
        waiting: set[asyncio.Future[object]] = {forming, self._loss}  # type: ignore[arg-type]
        try:
            await asyncio.wait(
                waiting, timeout=FORMING_LIMIT_S, return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            forming.cancel()
            raise
        if forming.done() and not self._loss.done():
            forming.result()
            return True
        forming.cancel()
        await asyncio.gather(forming, return_exceptions=True)
        unformed = sorted({*range(len(served.spec.ranks))} - self._formed)
        self._lose(f"not formed within {FORMING_LIMIT_S:g} s: ranks {unformed} did not answer")
        why = self._loss.result().reason
        if served is not self.served:
            self._keeper.not_answered(served, why)
        self._set_state("forming", f"epoch {self.epoch} was not formed: {why}")
        return False

    async def _form(self, epoch: Epoch, served: Served) -> None:
        digest, stages = served.spec_hash, self._loaded(served)
        self._ends = PipelineEnds(
            epoch, self._limits(served), deliver=self._listener_result, broken=self._lose
        )
        addresses = tuple((stage.address, stage.data_port) for stage in stages)
        self._membership.tell_ranks(
            len(stages), Form(epoch.master, epoch.counter, digest, addresses)
        )
        hello = Hello(Role.DATA, MASTER_RANK, epoch, digest)
        await self._ends.open(*addresses[0], self._token, hello)
        while len(self._formed) < len(stages):
            self._change.clear()
            await self._change.wait()

    def _loaded(self, served: Served) -> tuple[StageInfo, ...]:
        """Those of the spec, which have all loaded."""
        found = self._membership.stages(len(served.spec.ranks))
        return tuple(stage for stage in found if stage is not None)

    def _limits(self, served: Served) -> Limits:
        stages, spec = self._loaded(served), served.spec
        positions = max([stage.max_positions for stage in stages])
        return Limits.of_master(
            spec,
            vocab=stages[-1].vocab_size,
            positions=max(positions, spec.max_model_len or 0),
        )

    async def _serve(self) -> None:
        """From formed to lost, and the pause after a loss too many."""
        assert self._loss is not None
        self.history.formed(time.time())
        processes = self._membership.instances()
        self._set_state("ready", "")
        served = self._forming
        assert served is not None
        trial = served is not self.served
        self._listener.group_formed(Formation(self.epoch, self._loaded(served), served, trial))
        self._keeper.formed()
        self._remember()
        loss = await self._loss
        if trial:
            self._keeper.not_answered(served, loss.reason)
        self.history.epoch_lost(loss.reason, time.time())
        self._remember()
        self._listener.group_lost(loss.reason, announced=loss.announced)
        if pause_s := self._barren.lost():
            await self._pause(pause_s, loss.reason, processes)

    async def _pause(self, pause_s: float, reason: str, processes: frozenset[str]) -> None:
        """Wait in the state failed, `pause_s` or until a process joins that is none of those."""
        failed = (
            f"{self._barren.in_a_row} groups in a row failed before any token advanced, the last"
            f" one: {reason}"
        )
        self._retry_at = asyncio.get_running_loop().time() + pause_s
        wait = f"; the next try is in {pause_s:g} s, or when a stage's process is a new one"
        self._set_state("failed", failed + wait)
        self.history.gave_up(self._barren.in_a_row, time.time())
        self._remember()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                failed_of = self._forming
                while (
                    self._membership.instances() <= processes
                    and self._keeper.specs.to_form is failed_of
                ):
                    self._change.clear()
                    await self._change.wait()
        self._set_state("forming", failed)

    def _remember(self) -> None:
        """Have the stages keep it for the next master."""
        self._membership.broadcast(Remember(self.history.totals()))

    def _lose_rank(self, rank: int, how: str, why: str) -> None:
        if not (self._draining or self._ending):
            self._keeper.lost(rank, why)
            self.history.rank_lost(rank, how, time.time())
        self._lose(f"rank {rank}: {why}")

    @own_work
    def _lose(self, reason: str, *, announced: bool = False) -> None:
        """End the epoch in force, at once; the listener is told by our own task."""
        if self._loss is None or self._loss.done():
            return
        if announced:
            self._barren.excuse()
        if self._ends is not None:
            self._ends.close()
            self._ends = None
        self._loss.set_result(Loss(reason, announced))
        self._set_state("forming", f"epoch {self.epoch} was lost: {reason}")
        self._membership.broadcast(EpochFailed(self.epoch, reason))

    def _received(self, member: Member, message: Message) -> None:
        if self._keeper.received(member, message):
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
        """A stage wants to leave: alone it may, with the whole stack when all is drained."""
        if self._draining or self._membership.members.get(member.rank) is not member:
            return
        member.leaving = True
        self.history.rank_lost(member.rank, "was asked to end", time.time())
        self._lose(f"rank {member.rank} is ending", announced=True)
        member.channel.send(Released("the group forms again without this process"))
        self._change.set()

    def _judge(self, hello: Hello) -> str:
        """Why a connection is refused, "" accepts."""
        current = Epoch(self._master_id, self.epoch)
        return refusal(hello, self._forming, self._ends, current)

    async def _deliver(self, proven: Proven) -> None:
        if proven.hello.role == Role.CONTROL:
            await self._membership.hold(proven)
        elif self._ends is not None and self._ends.epoch == proven.hello.epoch:
            self._ends.accept_return(proven.connection)
        else:
            proven.connection.close()

    def _listener_result(self, result: StepResult) -> None:
        if self.state == "ready":
            self._listener.step_returned(result)

    def _set_state(self, state: State, reason: str) -> None:
        if (state, reason) != (self.state, self.reason):
            logger.info("group %s%s", state, f": {reason}" if reason else "")
        self.state, self.reason = state, reason

    def _check_task(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fault(error)
