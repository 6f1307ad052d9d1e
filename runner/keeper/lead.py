"""The group as rank 0's keeper leads it: keepers join, their engines form an epoch, lose it, and
form again. Membership, specs and swaps are the master's own (runner/master/group)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections.abc import Callable

from contract.specs import GroupSpec, KeeperSpec, MasterSpec
from runner.keeper.open_requests import OpenRequests
from runner.master.group.barren_epochs import BarrenEpochs
from runner.master.group.exchange import Exchange
from runner.master.group.formation import Loss
from runner.master.group.history import History
from runner.master.group.keeper import SpecKeeper
from runner.master.group.membership import Member, Membership
from runner.master.group.own_part import nothing_more
from runner.master.group.spec_changes import alike
from runner.master.group.swap import Swap
from runner.master.own_fault import OnFault, own_work, raise_fault
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
from runner.transport.handshake import NO_EPOCH, Hello, Role
from web.listener import bind
from web.logs import note_in_logs

logger = logging.getLogger(__name__)

# An engine compiles and measures before it answers; one that ends is noticed at once.
FORMING_LIMIT_S = 1800.0
FIRST_DELAY_S, LAST_DELAY_S = 0.2, 5.0
_SAID_EACH_S = 1.0
# Whoever ends the whole stack signals rank 0 within this time of the others.
LEAVING_GRACE_S = 0.5


class Lead:
    """`state` and `reason` are as Group's; `requests` are those that are open, whoever computes
    them. A fault in its own tasks goes to `on_fault`."""

    def __init__(
        self,
        spec: KeeperSpec,
        token: bytes,
        file: GroupSpec | None,
        *,
        on_fault: OnFault = raise_fault,
    ) -> None:
        self.spec, self._token, self._on_fault = spec, token, on_fault
        self.state, self.reason = "starting", "starting"
        self.history = History(time.time())
        self.requests = OpenRequests()
        self.engine_says: Callable[[], str] = lambda: ""
        """The last line of this rank's engine."""
        self._id = secrets.randbits(64)
        self._change = asyncio.Event()
        master = MasterSpec(
            spec.deployment_name, model_cache=spec.model_cache, stall_s=spec.stall_s
        )
        self._specs = SpecKeeper(
            master,
            file,
            make_ready=nothing_more,
            changed=self._specs_changed,
            taken=lambda: None,
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
        self._exchange = Exchange(self._specs, self.history, self.requests)
        self._forming: Served | None = None
        self._loss: asyncio.Future[Loss] | None = None
        self._formed: set[int] = set()
        self._barren = BarrenEpochs()
        self._retry_at = 0.0
        self._draining = self._ending = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listen on master_port; raises PortError naming the port."""
        listening = bind(self.spec.bind_address, self.spec.master_port)
        incoming = ProvingListener(listening, self._token, _judge, self._deliver)
        for work in (incoming.serve(), self._specs.decide(), self._live()):
            task = asyncio.create_task(work)
            task.add_done_callback(self._check_task)
            self._tasks.append(task)

    async def stop(self) -> None:
        """Tell the others that all is drained, and close everything."""
        self._ending = True
        self._set_state("starting", "the keeper of rank 0 is ending")
        for member in list(self._members.members.values()):
            member.channel.send(Released("drained"))
            member.channel.close()
        await self._specs.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drain(self) -> None:
        """It is ending: ranks that announce their leaving stay until `stop`."""
        self._draining = True

    def lose(self, reason: str) -> None:
        """The epoch cannot go on: its engine does not step any more."""
        self._lose(reason)

    def note_progress(self) -> None:
        """A token advanced."""
        self._barren.progressed()

    @property
    def ready(self) -> bool:
        """Every rank's keeper is there, and the engine has answered in this epoch."""
        return self.state == "ready"

    @property
    def retry_after_s(self) -> int:
        """In how many seconds to ask again, at most, while not ready."""
        if self.state != "failed":
            return 1
        return max(1, math.ceil(self._retry_at - asyncio.get_running_loop().time()))

    # As runner/master/api asks its engine

    @property
    def in_force(self) -> Served | None:
        """What is served, None while nothing is."""
        return self._specs.specs.in_force

    served = in_force

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
        """By rank of the spec in force, what its keeper said of itself."""
        return self._members.joins(self._ranks)

    @property
    def _ranks(self) -> int:
        return 0 if self.in_force is None else len(self.in_force.spec.ranks)

    # The life of epochs

    @own_work
    def _specs_changed(self) -> None:
        self._change.set()
        specs = self._specs.specs
        self.history.serves(specs.in_force)
        self._exchange.follow()
        wanted, formed = specs.to_form, self._forming
        if formed is None or wanted is None or formed is wanted:
            return
        if not alike(formed, wanted):
            self._lose("another spec is loaded", announced=True)
        else:
            self._forming = wanted

    async def _live(self) -> None:
        back_off = BackOff(FIRST_DELAY_S, LAST_DELAY_S)
        while True:
            await self._wait_for_ranks()
            if await self._form():
                back_off.reset()
                await self._serve()
            else:
                await self._pause_after_loss()
                await back_off.wait()

    async def _wait_for_ranks(self) -> None:
        while missing := self._specs.reason:
            self._set_state("starting", missing.replace("stages", "keepers"))
            self._change.clear()
            await self._change.wait()

    async def _form(self) -> bool:
        """One attempt: every rank starts its engine, and rank 0's answers."""
        served = self._specs.specs.to_form
        assert served is not None
        self._forming = served
        self.history.serves(self._specs.specs.in_force)
        self.history.trying()
        self._remember()
        counter, ranks = self.history.epoch, len(served.spec.ranks)
        note_in_logs("epoch", counter)
        self._set_state("forming", f"the engines of epoch {counter} are starting")
        loss = self._loss = asyncio.get_running_loop().create_future()
        self._formed.clear()
        self._barren.begin()
        addresses = tuple(
            (join.address, join.data_port) for join in self._members.joins(ranks) if join
        )
        self._members.tell_ranks(ranks, Form(self._id, counter, served.spec_hash, addresses))
        limit_s = served.spec.load_timeout_s or FORMING_LIMIT_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while len(self._formed) < ranks and not loss.done():
                    self._change.clear()
                    await self._changed_or_said()
        if len(self._formed) == ranks and not loss.done():
            return True
        self._lose(f"the engine has not answered within {limit_s:g} s")
        why = loss.result().reason
        if served is not self.in_force:
            self._specs.not_answered(served, why)
        self._set_state("forming", f"epoch {counter} was not formed: {why}")
        return False

    async def _changed_or_said(self) -> None:
        """A second at most; whoever follows a swap sees that its engine goes on starting."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._change.wait(), _SAID_EACH_S)
        swap, said = self.swap, self.engine_says()
        if swap is not None and swap.phase == "loading" and said:
            swap.reason = f"the engine says: {said}"

    async def _serve(self) -> None:
        """From formed, which is answered too, to lost."""
        served = self._forming
        assert served is not None
        assert self._loss is not None
        self.history.formed(time.time())
        self._set_state("ready", "")
        self._specs.formed()
        if served is not self.in_force:
            self._specs.answered()
        self._remember()
        self._change.set()
        self.requests.returned()
        loss = await self._loss
        self.history.epoch_lost(loss.reason, time.time())
        self._remember()
        await self._pause_after_loss()

    async def _pause_after_loss(self) -> None:
        """After three in a row that brought no token: until then, or until a keeper is new."""
        assert self._loss is not None
        pause_s = self._barren.lost()
        if not pause_s:
            return
        processes, reason = self._members.instances(), self._loss.result().reason
        failed = f"{self._barren.in_a_row} epochs in a row failed, the last one: {reason}"
        self._retry_at = asyncio.get_running_loop().time() + pause_s
        self._set_state("failed", f"{failed}; the next try is in {pause_s:g} s")
        self.history.gave_up(self._barren.in_a_row, time.time())
        self._remember()
        failed_of = self._forming
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                while (
                    self._members.instances() <= processes
                    and self._specs.specs.to_form is failed_of
                ):
                    self._change.clear()
                    await self._change.wait()
        self._set_state("forming", failed)

    def _remember(self) -> None:
        """Have the keepers keep it for the next one of rank 0."""
        self._members.broadcast(Remember(self.history.totals()))

    def _lose_rank(self, rank: int, how: str, why: str) -> None:
        if not (self._draining or self._ending):
            self._specs.lost(rank, why)
            self.history.rank_lost(rank, how, time.time())
        self._lose(f"rank {rank}: {why}")

    @own_work
    def _lose(self, reason: str, *, announced: bool = False) -> None:
        """End the epoch, at once: every rank ends its engine."""
        if self._loss is None or self._loss.done():
            return
        if announced:
            self._barren.excuse()
        self._loss.set_result(Loss(reason, announced))
        self._set_state("forming", f"epoch {self.history.epoch} was lost: {reason}")
        self._members.broadcast(EpochFailed(self.history.epoch, reason))
        self._change.set()

    def _received(self, member: Member, message: Message) -> None:
        if self._specs.received(member, message):
            return
        if isinstance(message, Formed) and message.counter == self.history.epoch:
            self._formed.add(member.rank)
            self._change.set()
        elif isinstance(message, EpochFailed) and message.counter == self.history.epoch:
            self._lose(f"rank {member.rank}: {message.reason}")
        elif isinstance(message, Leaving):
            asyncio.get_running_loop().call_later(LEAVING_GRACE_S, self._let_go, member)

    @own_work
    def _let_go(self, member: Member) -> None:
        if self._draining or self._members.members.get(member.rank) is not member:
            return
        member.leaving = True
        self.history.rank_lost(member.rank, "was asked to end", time.time())
        self._lose(f"rank {member.rank} is ending", announced=True)
        member.channel.send(Released("the group forms again without this process"))
        self._change.set()

    async def _deliver(self, proven: Proven) -> None:
        await self._members.hold(proven)

    def _set_state(self, state: str, reason: str) -> None:
        if (state, reason) != (self.state, self.reason):
            logger.info("group %s%s", state, f": {reason}" if reason else "")
        self.state, self.reason = state, reason

    def _check_task(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fault(error)


def _judge(hello: Hello) -> str:
    """Why a connection is refused, "" accepts: keepers have nothing but control connections."""
    if hello.role == Role.CONTROL:
        return "" if hello.epoch == NO_EPOCH else "a control connection is of no epoch"
    return f"role = {hello.role.name}: a keeper accepts control connections only"
