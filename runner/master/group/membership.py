"""Who holds which rank: joins, heartbeats, and what each holds of which spec."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from runner.errors import ProtocolError
from runner.master.group.history import History
from runner.master.group.wrong_device import wrong_device
from runner.transport.connection import Proven
from runner.transport.control import Heartbeat, Join, Message, Refusal, Served, StageInfo
from runner.transport.control_channel import ControlChannel
from runner.transport.silence import SILENCE_LIMIT_S

logger = logging.getLogger(__name__)

HOLDER_ALIVE_S = 1.5  # who was heard within this time keeps its rank against another process


class Member:
    """One stage's control connection. `stage` are its weights, of the spec of hash `holds`, and
    `prepared` is the hash of the one whose part it has at hand; it was `told` to prepare one last.
    """

    def __init__(self, rank: int, join: Join, channel: ControlChannel) -> None:
        self.rank, self.join, self.channel = rank, join, channel
        self.leaving = False
        self.holds = self.prepared = self.told = ""
        self.stage: StageInfo | None = None
        if join.holding is not None:
            self.loaded(join.holding.spec_hash, join.holding.stage)

    def loaded(self, digest: str, stage: StageInfo) -> None:
        """Raises ProtocolError."""
        if stage.rank != self.rank:
            raise ProtocolError(f"rank {self.rank} has loaded a part of rank {stage.rank}")
        self.holds, self.stage = digest, replace(stage, address=self.join.address)

    def dropped(self) -> None:
        """Its weights are going."""
        self.holds, self.stage = "", None

    def usable(self, digest: str) -> bool:
        """Whether it serves that spec."""
        return self.stage is not None and self.holds == digest and not self.leaving


class Membership:
    """At most one member for each rank; ranks beyond those that are served are let in too.

    Two processes of one rank do not take it from one another in turns: the one that holds it and
    is heard keeps it, the other is refused by name and tries again each second. A process that
    dials again (its connection broke on one side only) replaces itself.

    `joined` is called with who has joined, `refused` when somebody was not let in; `lost` when a
    member is gone: how (as in History.rank_lost) and why; `received` with every message of a member
    that holds its rank.
    """

    def __init__(
        self,
        history: History,
        *,
        joined: Callable[[Member], None],
        refused: Callable[[], None],
        lost: Callable[[int, str, str], None],
        received: Callable[[Member, Message], None],
    ) -> None:
        self._history = history
        self._joined, self._refused = joined, refused
        self._lost, self._received = lost, received
        self.members: dict[int, Member] = {}
        self.failures: dict[int, tuple[str, str]] = {}
        """By rank, the spec's hash and why, where what it tried last has failed."""
        self._refusals: dict[int, str] = {}

    def missing(self, served: Served) -> str:
        """One sentence on who is not there yet, "" when everybody is."""
        absent: list[str] = []
        digest = served.spec_hash
        for rank in range(len(served.spec.ranks)):
            member = self.members.get(rank)
            if member is not None and member.usable(digest):
                continue
            what = "is loading its weights" if member is not None else "has not joined"
            if member is None and rank in self._refusals:
                what = f"is refused: {self._refusals[rank]}"
            if member is not None and member.leaving:
                what = "is ending"
            failure = self.failures[rank][1] if self.failed(rank, digest) else ""
            absent.append(f"rank {rank} {failure or what}")
        return "waiting for stages: " + ", ".join(absent) if absent else ""

    def failed(self, rank: int, digest: str) -> bool:
        """Whether the rank has tried that spec last, and could not have its part."""
        return rank in self.failures and self.failures[rank][0] == digest

    def stages(self, ranks: int) -> tuple[StageInfo | None, ...]:
        """What is known of the first ones, by rank."""
        members = [self.members.get(rank) for rank in range(ranks)]
        return tuple(member.stage if member is not None else None for member in members)

    def joins(self, ranks: int) -> tuple[Join | None, ...]:
        """Of the first ones, by rank, what each said of itself; None where no process is there."""
        members = [self.members.get(rank) for rank in range(ranks)]
        return tuple(member.join if member is not None else None for member in members)

    def instances(self) -> frozenset[str]:
        """The processes that hold a rank now."""
        return frozenset(member.join.instance for member in self.members.values())

    def broadcast(self, message: Message) -> None:
        for member in self.members.values():
            member.channel.send(message)

    def tell_ranks(self, ranks: int, message: Message) -> None:
        """The first ones."""
        for rank in range(ranks):
            if rank in self.members:
                self.members[rank].channel.send(message)

    async def hold(self, proven: Proven) -> None:
        """A proven control connection's whole life."""
        channel = await ControlChannel.over(proven.connection)
        rank = proven.hello.rank
        try:
            async with asyncio.timeout(SILENCE_LIMIT_S):
                join = await channel.receive()
            if not isinstance(join, Join):
                raise ProtocolError(f"{join.kind} before join")
            member = Member(rank, join, channel)
        except (OSError, ProtocolError, TimeoutError) as error:
            logger.warning("rank %d at %s did not join: %s", rank, proven.peer, error)
            channel.abort()
            return
        if refusal := self._refusal(rank, join):
            # It tries again each second.
            if self._refusals.get(rank) != refusal:
                logger.warning("refused rank %d at %s: %s", rank, proven.peer, refusal)
            self._refusals[rank] = refusal
            self._refused()
            channel.send(Refusal(refusal))
            channel.close()
            return
        self._enter(member)
        watch = asyncio.create_task(self._watch(member))
        watch.add_done_callback(partial(_let_go_on_fault, channel))
        reason = ""
        try:
            self._joined(member)
            while True:
                message = await channel.receive()
                if not isinstance(message, Heartbeat) and self.members.get(rank) is member:
                    self._received(member, message)
        except (OSError, ProtocolError) as error:
            reason = f"the control connection: {error}"
        except asyncio.CancelledError:
            reason = "the master ends"
            raise
        finally:
            watch.cancel()
            self._leave(member, reason)

    def _refusal(self, rank: int, join: Join) -> str:
        if wrong := wrong_device(rank, join):
            return wrong
        holder = self.members.get(rank)
        if holder is None or holder.join.instance == join.instance:
            return ""
        if holder.channel.silence.seconds > HOLDER_ALIVE_S:
            return ""
        return (
            f"rank {rank} is held by process {holder.join.process_id} at {holder.join.address},"
            " which is alive"
        )

    def _enter(self, member: Member) -> None:
        rank, join = member.rank, member.join
        if (holder := self.members.get(rank)) is not None:
            self._leave(holder, "replaced by a newer connection")
        self.members[rank] = member
        self._refusals.pop(rank, None)
        self._history.joined(rank, join.instance, join.memory, join.alone_s, time.time())
        logger.info("rank %d joined: process %d at %s", rank, join.process_id, join.address)

    async def _watch(self, member: Member) -> None:
        await member.channel.keep_alive()
        self._leave(member, f"silent for {SILENCE_LIMIT_S:g} s", how="silent")

    def _leave(self, member: Member, reason: str, how: str = "gone") -> None:
        member.channel.abort()
        if self.members.get(member.rank) is not member:
            return
        del self.members[member.rank]
        self._refusals.pop(member.rank, None)
        logger.warning("rank %d is gone: %s", member.rank, reason)
        self._lost(member.rank, how, reason)


def _let_go_on_fault(channel: ControlChannel, task: asyncio.Task[None]) -> None:
    """A member that nobody watches any more is let go: it dials again."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("a member's watch stopped on a fault of its own", exc_info=error)
        channel.abort()
