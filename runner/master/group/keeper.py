"""Has every rank hold what the group is to serve: tells the members, and hears what became of it.

What follows from what is heard is decided by Specs (specs.py). Here are the clock, the messages,
and the master's own part: the commit of a model, and whatever it needs of it beside the stages.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine

from contract.specs import GroupSpec, MasterSpec
from runner.errors import ModelUnavailable, NotServing, RunnerError
from runner.master.group.former_spec import FormerSpec
from runner.master.group.membership import Member, Membership
from runner.master.group.own_part import MakeReady, OwnPart
from runner.master.group.spec_changes import changed_keys
from runner.master.group.specs import Order, Specs
from runner.master.group.swap import Phase, Swap
from runner.master.own_fault import OnFault
from runner.transport.control import (
    Forget,
    Load,
    Loaded,
    LoadFailed,
    Message,
    Prepare,
    Prepared,
    PrepareFailed,
    Progress,
    Served,
    Take,
    Taken,
    Welcome,
)

logger = logging.getLogger(__name__)

KNOWN_WITHIN_S = 5.0  # after that a push is put off
LOOK_EACH_S = 0.5
LOG_EACH_TURNS = 20


class SpecKeeper:
    """`specs` says what is served and what is on its way in; `file` is the spec that counts where
    no stage knows of one. `changed` is called after all that was heard, `ended` once a swap has,
    `taken` once every stage goes by a spec with other limits. A fault in its own tasks goes to
    `on_fault`."""

    def __init__(
        self,
        spec: MasterSpec,
        file: GroupSpec | None,
        *,
        make_ready: MakeReady,
        changed: Callable[[], None],
        taken: Callable[[], None],
        ended: Callable[[Swap], None],
        on_fault: OnFault,
    ) -> None:
        self._taken, self._ended, self._on_fault = taken, ended, on_fault
        self._untaken: set[int] = set()
        self._processes: dict[int, str] = {}
        self._own = OwnPart(spec.model_cache, make_ready)
        self._former = FormerSpec(file, self._own)
        self._changed = changed
        self.specs = Specs(spec.stall_s)
        self._members: Membership
        self._decided = self._formed = False
        self._known = asyncio.Event()  # what was served, or that nothing was
        self._work: set[asyncio.Task[None]] = set()

    def attach(self, members: Membership) -> None:
        self._members = members

    @property
    def reason(self) -> str:
        """Why no epoch can be formed now, "" where one can."""
        if (wanted := self.specs.to_form) is not None:
            return self._members.missing(wanted)
        if self._former.failure:
            return self._former.failure
        if (file := self._former.file) is not None:
            missing = self._members.missing(Served(file, ""))
            return missing or "it is not known yet what stages served before"
        return "no spec is served yet: one is to be pushed"

    async def decide(self) -> None:
        """Once: what was served before, else nothing until a spec is pushed; which it can be too
        while that one cannot be had."""
        served = await self._former.found(self._let_in, lambda: self.specs.in_force is None)
        if served is not None and self.specs.in_force is None:
            self.specs.in_force = served
            logger.info("the model's commit is %s", served.commit)
        self._let_in()
        self._heard()

    def _let_in(self) -> None:
        """Those who have joined; a spec can be pushed."""
        self._known.set()
        if not self._decided:
            self._decided = True
            for member in self._members.members.values():
                self._greet(member)
        self._changed()

    # A spec is pushed

    async def push(self, spec: GroupSpec) -> Swap | None:
        """As Specs.push; raises NotServing too where nobody has joined yet who may know what is
        served.
        What is taken from one step to the next is in Specs.in_force then."""
        try:
            await asyncio.wait_for(self._known.wait(), KNOWN_WITHIN_S)
        except TimeoutError:
            raise NotServing("no stage has joined this master yet: push again") from None
        before, old = self.specs.swap, self.specs.in_force
        swap = self.specs.push(spec, time.time())
        if old is not None and self.specs.in_force is not old:
            self._take(old)
        if swap is not None and swap is not before:
            logger.info("spec %s (%s) is prepared", swap.spec_hash[:12], spec.model_name)
            for member in self._members.members.values():
                member.told = member.prepared = ""
            self.start(self._look_for_model(swap))
            self.start(self._watch(swap))
        self._heard()
        return swap

    def _take(self, old: Served) -> None:
        """Who holds the old spec's weights goes by the new one with them."""
        served = self.specs.in_force
        assert served is not None
        before, digest = old.spec_hash, served.spec_hash
        logger.info("spec %s is taken, its limits are others", digest[:12])
        for rank, member in self._members.members.items():
            if member.holds == before:
                member.holds = member.told = digest
                self._untaken.add(rank)
                member.channel.send(Take(served.spec))

    async def _look_for_model(self, swap: Swap) -> None:
        """The master's own part of preparing."""
        old, spec = self.specs.in_force, swap.spec
        same = old is not None and not changed_keys(old.spec, spec) & {
            "model_name",
            "model_revision",
        }
        try:
            served = await self._own.ready(spec, old.commit if old is not None and same else "")
        except Exception as error:  # whatever reads a tokenizer
            if not isinstance(error, RunnerError):
                logger.exception("the model's text cannot be read")
            self.specs.fail(swap, str(error) or type(error).__name__, time.time())
        else:
            self.specs.commit_known(swap, served.commit, time.time())
        self._heard()

    async def _watch(self, swap: Swap) -> None:
        """Limits of time, and a log line now and then."""
        turn = 0
        while swap.running:
            await asyncio.sleep(LOOK_EACH_S)
            self.specs.look(time.time())
            self._heard()
            turn += 1
            if swap.running and turn % LOG_EACH_TURNS == 0:
                logger.info("spec %s: %s", swap.spec_hash[:12], swap.line)
        self._ended(swap)
        if swap.phase == "failed":
            logger.error("spec %s is not served: %s", swap.spec_hash[:12], swap.reason)
        else:
            logger.info("spec %s is served", swap.spec_hash[:12])

    def start(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fault(error)

    async def close(self) -> None:
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    # What is heard

    def joined(self, member: Member) -> None:
        self._former.heard(member.join.memory, len(self._members.members))
        instance, before = member.join.instance, self._processes.get(member.rank)
        self._processes[member.rank] = instance
        self.specs.rank_joined(member.rank, same_process=instance == before, now=time.time())
        if self._decided:
            self._greet(member)
            self._change_mind()
        self._changed()

    def formed(self) -> None:
        """An epoch of what was to be formed."""
        self._formed = True
        self.specs.formed()
        self._heard()

    def drained(self) -> None:
        """No request runs that could end."""
        self.specs.drained(time.time())
        self._heard()

    def answered(self) -> None:
        """The new weights have computed a token."""
        self.specs.answered(time.time())
        self._heard()

    def not_answered(self, served: Served, reason: str) -> None:
        """They have not."""
        self.specs.not_answered(served, reason, time.time())
        self._heard()

    def lost(self, rank: int, why: str) -> None:
        """A member is gone."""
        self._untaken.discard(rank)
        self.specs.rank_lost(rank, why, time.time())
        self._heard()

    def _change_mind(self) -> None:
        """A stage came late that knows better what was served: as long as nothing was."""
        known = self._former.remembered
        if known is None or self._formed or self.specs.swap is not None:
            return
        if known != self.specs.in_force:
            self.start(self._adopt(known))

    async def _adopt(self, served: Served) -> None:
        try:
            await self._own.ready(served.spec, served.commit)
        except ModelUnavailable as error:
            logger.error("%s", error)
            return
        if not self._formed and self.specs.swap is None:
            logger.info("spec %s was served before: it is again", served.spec_hash[:12])
            self.specs.in_force = served
            self._heard()

    def received(self, member: Member, message: Message) -> bool:
        """Whether the message was about specs."""
        now, rank, specs = time.time(), member.rank, self.specs
        if isinstance(message, Progress):
            specs.progress(
                rank, message.spec_hash, message.fetched_bytes, message.wanted_bytes, now
            )
        elif isinstance(message, Prepared):
            member.prepared = message.spec_hash
            specs.prepared(rank, message.spec_hash, now, ahead=message.loaded)
        elif isinstance(message, Loaded):
            member.loaded(message.spec_hash, message.stage)
            self._members.failures.pop(rank, None)
            specs.loaded(rank, message.spec_hash, now)
        elif isinstance(message, PrepareFailed | LoadFailed):
            logger.error("rank %d cannot load the model: %s", rank, message.reason)
            told = f"cannot load the model: {message.reason}"
            self._members.failures[rank] = message.spec_hash, told
            if member.told == message.spec_hash:
                member.told = member.prepared = ""
            specs.rank_failed(rank, message.spec_hash, message.reason, now)
        elif isinstance(message, Taken):
            if message.spec_hash == member.holds:
                self._untaken.discard(rank)
            if not self._untaken:
                self._taken()
        else:
            return False
        self._heard()
        return True

    def _heard(self) -> None:
        """Tell every member what it is to have, where it does not know; again where that moves the
        swap on."""
        told: Phase | None = None
        while (phase := self._phase) != told:
            told = phase
            for member in self._members.members.values():
                self._tell(member)
        self._changed()

    @property
    def _phase(self) -> Phase:
        swap = self.specs.running
        return "serving" if swap is None else swap.phase

    # What is told

    def _greet(self, member: Member) -> None:
        member.channel.send(Welcome(part=self._order(member) is not None))
        self._tell(member)
        if not member.told:  # by this master; one before it may have
            member.channel.send(Forget(""))

    def _order(self, member: Member) -> Order | None:
        rank, served = member.rank, self.specs.in_force
        failed = served is not None and self._members.failed(rank, served.spec_hash)
        return self.specs.order(rank, lacking=self.specs.lacks(rank, member.holds) and not failed)

    @property
    def cannot_go_on(self) -> bool:
        """Whether what runs cannot end by the weights in force: they are not back, or cannot be."""
        served = self.specs.in_force
        return self.specs.returning or (
            served is not None
            and any(
                self._members.failed(rank, served.spec_hash)
                for rank in range(len(served.spec.ranks))
            )
        )

    def _tell(self, member: Member) -> None:
        order = self._order(member)
        digest = "" if order is None else order.served.spec_hash
        if order is None or member.holds == digest:
            if member.told not in ("", digest):
                member.channel.send(Forget(member.told))
                member.told = member.prepared = ""
            self.specs.holds(member.rank, digest, time.time())
            return
        if member.prepared != digest:
            if member.told != digest:
                member.told = digest
                self.specs.told(member.rank, digest, time.time())
                sharing = self._sharing(member, order.served.spec)
                member.channel.send(
                    Prepare(order.served.spec, order.served.commit, sharing, order.in_force)
                )
        elif order.load:
            # Prepared no longer: it is loaded next, or has failed.
            member.prepared = ""
            member.dropped()
            self.specs.told(member.rank, digest, time.time())
            member.channel.send(Load(digest))

    def _sharing(self, member: Member, spec: GroupSpec) -> int:
        """How many ranks of the spec take their memory from the member's node; who has not joined
        may come to it."""
        joins = self._members.joins(len(spec.ranks))
        return sum(join is None or join.node == member.join.node for join in joins)
