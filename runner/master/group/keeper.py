"""Has every rank hold what the group is to serve: tells the members, and hears what became of it.

What follows from what is heard is decided by Specs (swap.py). Here are the clock, the messages, and
the master's own part: the commit of a model, and whatever it needs of it beside the stages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from contract.specs import GroupSpec, MasterSpec
from runner.errors import ModelUnavailable
from runner.master.group.membership import Member, Membership
from runner.master.group.swap import Specs
from runner.models.folder import resolve_model
from runner.transport.control import (
    Load,
    Loaded,
    LoadFailed,
    Message,
    Prepare,
    Prepared,
    PrepareFailed,
    Progress,
    Served,
    Welcome,
)

logger = logging.getLogger(__name__)

PATIENCE_S = 1.5  # a new master waits so long for stages that know what was served
RESOLVE_AGAIN_S = 5.0

# What the master itself needs of a model, made ready; raises ModelUnavailable.
MakeReady = Callable[[Served, Path], Awaitable[None]]


async def nothing_more(_served: Served, _folder: Path) -> None:
    """For a master without an API."""


class SpecKeeper:
    """`specs` says what is served and what is on its way in. `changed` is called after all that
    was heard; `file` is the spec that counts where no stage knows of one."""

    def __init__(
        self,
        spec: MasterSpec,
        file: GroupSpec | None,
        *,
        make_ready: MakeReady,
        changed: Callable[[], None],
    ) -> None:
        self._spec, self._file, self._make_ready = spec, file, make_ready
        self._changed = changed
        self.specs = Specs(spec.stall_s)
        self.failure = ""
        """Why the master does not know what to load, where it should."""
        self._members: Membership
        self._remembered: tuple[int, Served] | None = None
        self._decided = False
        self._first, self._all = asyncio.Event(), asyncio.Event()

    def attach(self, members: Membership) -> None:
        self._members = members

    @property
    def reason(self) -> str:
        """Why no epoch can be formed now, "" where one can."""
        if (wanted := self.specs.to_form) is not None:
            return self._members.missing(wanted)
        if self.failure:
            return self.failure
        if self._file is not None:
            return self._members.missing(Served(self._file, ""))
        return "no spec is served yet: one is to be pushed"

    async def decide(self) -> None:
        """Once: what stages remember, else the file, else nothing until a spec is pushed."""
        await self._first.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all.wait(), PATIENCE_S)
        while not self._decided:
            try:
                self.specs.in_force = await self._what_was_served()
                self._decided = True
            except ModelUnavailable as error:
                logger.error("%s", error)
                self.failure = str(error)
                self._changed()
                await asyncio.sleep(RESOLVE_AGAIN_S)
        self.failure = ""
        if (served := self.specs.in_force) is not None:
            logger.info("the model's commit is %s", served.commit)
        for member in self._members.members.values():
            self._greet(member)
        self._changed()

    async def _what_was_served(self) -> Served | None:
        if self._remembered is not None:
            served = self._remembered[1]
            await self._ready(served.spec, served.commit)
            return served
        return None if self._file is None else await self._ready(self._file, "")

    async def _ready(self, spec: GroupSpec, commit: str) -> Served:
        """The spec with the commit of its model, the one given or what its name stands for now."""
        revision = commit or spec.model_revision
        folder = await asyncio.to_thread(
            resolve_model, spec.model_name, revision, self._spec.model_cache
        )
        served = Served(spec, commit or folder.commit)
        await self._make_ready(served, folder.path)
        return served

    # What is heard

    def joined(self, member: Member) -> None:
        memory = member.join.memory
        if memory is not None and memory.served is not None:
            known = self._remembered
            if known is None or memory.version > known[0]:
                self._remembered = memory.version, memory.served
        self._first.set()
        expected = self._remembered[1].spec if self._remembered else self._file
        if expected is not None and len(self._members.members) >= len(expected.ranks):
            self._all.set()
        if self._decided:
            self._greet(member)
        self._changed()

    def received(self, member: Member, message: Message) -> bool:
        """Whether the message was about specs."""
        now, rank, specs = time.time(), member.rank, self.specs
        if isinstance(message, Progress):
            specs.progress(
                rank, message.spec_hash, message.fetched_bytes, message.wanted_bytes, now
            )
        elif isinstance(message, Prepared):
            member.prepared = message.spec_hash
            specs.prepared(rank, message.spec_hash, now)
        elif isinstance(message, Loaded):
            member.loaded(message.spec_hash, message.stage)
            self._members.failures.pop(rank, None)
            specs.loaded(rank, message.spec_hash, now)
        elif isinstance(message, PrepareFailed | LoadFailed):
            logger.error("rank %d cannot load the model: %s", rank, message.reason)
            self._members.failures[rank] = f"cannot load the model: {message.reason}"
            if member.told == message.spec_hash:
                member.told = member.prepared = ""
            specs.rank_failed(rank, message.spec_hash, message.reason, now)
        else:
            return False
        self.tell()
        self._changed()
        return True

    # What is told

    def _greet(self, member: Member) -> None:
        member.channel.send(Welcome(part=self.specs.order(member.rank) is not None))
        self._tell(member)

    def tell(self) -> None:
        """Every member what it is to have, where it does not know."""
        for member in self._members.members.values():
            self._tell(member)

    def _tell(self, member: Member) -> None:
        order = self.specs.order(member.rank)
        if order is None:
            return
        digest = order.served.spec_hash
        if member.holds == digest:
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
