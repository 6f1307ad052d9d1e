"""Who holds which rank: joins, heartbeats, and the model's commit that all of them load."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from contract.specs import GroupSpec
from runner.errors import ModelUnavailable, ProtocolError
from runner.master.group.history import History
from runner.models.folder import resolve_model
from runner.transport.connection import Proven
from runner.transport.control import (
    ControlChannel,
    Heartbeat,
    Join,
    Loaded,
    LoadFailed,
    Message,
    Refusal,
    StageInfo,
    Welcome,
)
from runner.transport.silence import SILENCE_LIMIT_S

logger = logging.getLogger(__name__)

HOLDER_ALIVE_S = 1.5  # who was heard within this time keeps its rank against another process
COMMIT_PATIENCE_S = 1.5  # a new master waits so long for stages that already hold a commit
RESOLVE_AGAIN_S = 5.0


class Member:
    """One stage's control connection."""

    def __init__(self, rank: int, join: Join, channel: ControlChannel) -> None:
        self.rank, self.join, self.channel = rank, join, channel
        self.leaving = False
        self.stage: StageInfo | None = None

    @property
    def usable(self) -> bool:
        return self.stage is not None and not self.leaving


class Membership:
    """At most one member for each rank.

    Two processes of one rank do not take it from one another in turns: the one that holds it and
    is heard keeps it, the other is refused by name and tries again each second. A process that
    dials again (its connection broke on one side only) replaces itself.

    `changed` is called when anyone joined, loaded or left; `lost` when a member is gone: how (as in
    History.rank_lost) and why; `received` with every message that is not about membership.
    """

    def __init__(
        self,
        spec: GroupSpec,
        history: History,
        *,
        changed: Callable[[], None],
        lost: Callable[[int, str, str], None],
        received: Callable[[Member, Message], None],
    ) -> None:
        self._spec, self._history = spec, history
        self._changed, self._lost, self._received = changed, lost, received
        self.members: dict[int, Member] = {}
        self.commit: str | None = None
        self._commit_failure = ""
        self._load_failures: dict[int, str] = {}
        self._joined, self._all_joined = asyncio.Event(), asyncio.Event()
        self._commit_known = asyncio.Event()

    def missing(self) -> str:
        """One sentence on who is not there yet, "" when everybody is."""
        absent: list[str] = []
        for item in self._spec.ranks:
            member = self.members.get(item.rank)
            if member is not None and member.usable:
                continue
            what = "is loading its weights" if member is not None else "has not joined"
            if member is not None and member.leaving:
                what = "is ending"
            failure = self._load_failures.get(item.rank, "")
            absent.append(f"rank {item.rank} {failure or what}")
        if not absent:
            return ""
        why = f" ({self._commit_failure})" if self._commit_failure else ""
        return "waiting for stages: " + ", ".join(absent) + why

    def stages(self) -> tuple[StageInfo | None, ...]:
        """What is known, by rank."""
        members = [self.members.get(item.rank) for item in self._spec.ranks]
        return tuple(member.stage if member is not None else None for member in members)

    def joined(self) -> tuple[bool, ...]:
        """By rank: whether its process is there, loaded or not."""
        return tuple(item.rank in self.members for item in self._spec.ranks)

    def instances(self) -> frozenset[str]:
        """The processes that hold a rank now."""
        return frozenset(member.join.instance for member in self.members.values())

    def broadcast(self, message: Message) -> None:
        for member in self.members.values():
            member.channel.send(message)

    async def hold(self, proven: Proven) -> None:
        """A proven control connection's whole life."""
        channel = await ControlChannel.over(proven.connection)
        rank = proven.hello.rank
        try:
            async with asyncio.timeout(SILENCE_LIMIT_S):
                join = await channel.receive()
            if not isinstance(join, Join):
                raise ProtocolError(f"{join.kind} before join")
        except (OSError, ProtocolError, TimeoutError) as error:
            logger.warning("rank %d at %s did not join: %s", rank, proven.peer, error)
            channel.abort()
            return
        if refusal := self._refusal(rank, join):
            logger.warning("refused rank %d at %s: %s", rank, proven.peer, refusal)
            channel.send(Refusal(refusal))
            channel.close()
            return
        member = self._enter(rank, join, channel)
        tasks = [asyncio.create_task(work(member)) for work in (self._welcome, self._watch)]
        for task in tasks:
            task.add_done_callback(partial(_let_go_on_fault, channel))
        reason = ""
        try:
            while True:
                self._handle(member, await channel.receive())
        except (OSError, ProtocolError) as error:
            reason = f"the control connection: {error}"
        except asyncio.CancelledError:
            reason = "the master ends"
            raise
        finally:
            for task in tasks:
                task.cancel()
            self._leave(member, reason)

    async def resolve_commit(self) -> None:
        """Decide once which commit is loaded: the one that stages hold already, or the newest."""
        await self._joined.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_joined.wait(), COMMIT_PATIENCE_S)
        while self.commit is None:
            try:
                folder = await asyncio.to_thread(
                    resolve_model,
                    self._spec.model_name,
                    self._spec.model_revision,
                    self._spec.model_cache,
                )
                self._adopt(folder.commit)
            except ModelUnavailable as error:
                logger.error("%s", error)
                self._commit_failure = str(error)
                self._changed()
                await asyncio.sleep(RESOLVE_AGAIN_S)

    def _adopt(self, commit: str) -> None:
        if self.commit is None:
            logger.info("the model's commit is %s", commit)
            self.commit, self._commit_failure = commit, ""
            self._commit_known.set()

    def _refusal(self, rank: int, join: Join) -> str:
        holder = self.members.get(rank)
        if holder is None or holder.join.instance == join.instance:
            return ""
        if holder.channel.silence.seconds > HOLDER_ALIVE_S:
            return ""
        return (
            f"rank {rank} is held by process {holder.join.process_id} at {holder.join.address},"
            " which is alive"
        )

    def _enter(self, rank: int, join: Join, channel: ControlChannel) -> Member:
        holder = self.members.get(rank)
        if holder is not None:
            self._leave(holder, "replaced by a newer connection")
        member = Member(rank, join, channel)
        self.members[rank] = member
        self._history.joined(rank, join.instance, join.memory, join.alone_s, time.time())
        logger.info("rank %d joined: process %d at %s", rank, join.process_id, join.address)
        if join.commit is not None:
            self._adopt(join.commit)
        if join.stage is not None:
            self._loaded(member, join.stage)
        self._joined.set()
        if len(self.members) == len(self._spec.ranks):
            self._all_joined.set()
        self._changed()
        return member

    async def _welcome(self, member: Member) -> None:
        await self._commit_known.wait()
        assert self.commit is not None
        member.channel.send(Welcome(self.commit))

    async def _watch(self, member: Member) -> None:
        await member.channel.keep_alive()
        self._leave(member, f"silent for {SILENCE_LIMIT_S:g} s", how="silent")

    def _handle(self, member: Member, message: Message) -> None:
        if isinstance(message, Loaded):
            self._loaded(member, message.stage)
            self._changed()
        elif isinstance(message, LoadFailed):
            logger.error("rank %d cannot load the model: %s", member.rank, message.reason)
            self._load_failures[member.rank] = f"cannot load the model: {message.reason}"
            self._changed()
        elif not isinstance(message, Heartbeat) and self.members.get(member.rank) is member:
            self._received(member, message)

    def _loaded(self, member: Member, stage: StageInfo) -> None:
        layers = self._spec.ranks[member.rank].layers
        if stage.rank != member.rank or tuple(stage.layers) != tuple(layers):
            raise ProtocolError(f"rank {member.rank} has loaded layers {stage.layers}")
        if stage.commit != self.commit:
            # It was told the right commit: it ends itself and comes back with the right weights.
            logger.warning("rank %d holds commit %s, not ours", member.rank, stage.commit)
            return
        member.stage = replace(stage, address=member.join.address)
        self._load_failures.pop(member.rank, None)

    def _leave(self, member: Member, reason: str, how: str = "gone") -> None:
        member.channel.abort()
        if self.members.get(member.rank) is not member:
            return
        del self.members[member.rank]
        logger.warning("rank %d is gone: %s", member.rank, reason)
        self._lost(member.rank, how, reason)
        self._changed()


def _let_go_on_fault(channel: ControlChannel, task: asyncio.Task[None]) -> None:
    """A member that nobody watches any more is let go: it dials again."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("a member's watch stopped on a fault of its own", exc_info=error)
        channel.abort()
