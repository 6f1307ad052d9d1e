"""What became of the group, over the lives of its masters: counters, and the last events. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from runner.master.group.swap import Swap
from runner.transport.control import GroupEvent, GroupMemory, Served

EVENTS = 50
_LONGEST_REASON = 160


class History:
    """Counters of this master's life, and with what stages remember of those before it.

    `epoch` is the newest known, 0 while none is: a new master goes on where the last one was, once
    a stage that outlived it has joined. `formations`, `losses`, `replays` and `restarts` are of
    this life; `totals` are of all known ones. Times are unix seconds, and are given.
    """

    def __init__(self, now: float) -> None:
        self.epoch = self.formations = self.losses = self.replays = 0
        self._before = GroupMemory(0, 0, 0, 0, 0, (), (), ())
        self._version = 0
        self._served: Served | None = None
        self.swaps = {"served": 0, "failed": 0}
        self._processes: dict[int, list[str]] = {}
        self._events = [GroupEvent(now, "start", None, "started", None)]

    def restarts(self, ranks: int) -> tuple[int, ...]:
        """Of the first ones, by rank: how often another process took it over."""
        return tuple(max(0, len(self._holders(rank)) - 1) for rank in range(ranks))

    def totals(self, ranks: int = 0) -> GroupMemory:
        """What the next master is to know: counters of all known lives and the last events. By
        rank it has those that were ever seen, and `ranks` at least."""
        before = self._before
        ranks = max([ranks, len(before.restarts), *(rank + 1 for rank in self._processes)])
        old = before.restarts + (0,) * (ranks - len(before.restarts))
        return GroupMemory(
            version=self._version,
            epoch=self.epoch,
            formations=before.formations + self.formations,
            losses=before.losses + self.losses,
            replays=before.replays + self.replays,
            restarts=tuple(a + b for a, b in zip(old, self.restarts(ranks), strict=True)),
            instances=tuple((self._holders(rank) or [""])[-1] for rank in range(ranks)),
            events=tuple(sorted((*before.events, *self._events), key=lambda e: e.at)[-EVENTS:]),
            served=self._served,
        )

    def describe_events(self) -> list[dict[str, object]]:
        """The last events, oldest first: at, kind, rank, text, duration_s (None: not over)."""
        return [_describe(event) for event in self.totals().events]

    # What happens

    def serves(self, served: Served | None) -> None:
        """What is in force; the next master is to go on with it."""
        if served != self._served:
            self._served = served
            self._version += 1

    def joined(
        self, rank: int, instance: str, memory: GroupMemory | None, alone_s: float, now: float
    ) -> None:
        """A stage has joined, with what its last master told it `alone_s` ago or before."""
        if memory is not None and memory.version > self._version and _is_whole(memory):
            self._adopt(memory, now - alone_s)
        holders = self._holders(rank)
        processes = self._processes.setdefault(rank, [])
        if processes[-1:] != [instance]:
            processes.append(instance)
        again = _cut_off if holders[-1:] == [instance] else _restarted
        self._amend(lambda e: e.kind == "rank" and e.rank == rank, again)

    def trying(self) -> None:
        """A new epoch is about to form."""
        self.epoch += 1
        self._version += 1

    def formed(self, now: float) -> None:
        """The group serves: what was not over is."""
        self.formations += 1
        self._version += 1
        self._amend(lambda _: True, lambda e: replace(e, duration_s=max(0.0, now - e.at)))

    def epoch_lost(self, reason: str, now: float) -> None:
        """A formed epoch has ended, for `reason` where nothing else is known to be wrong."""
        self.losses += 1
        self._version += 1
        if not any(e.duration_s is None for e in self.totals().events):
            what = f"epoch {self.epoch} lost ({_shortened(reason)})"
            self._events.append(GroupEvent(now, "epoch", None, what, None))

    def swap_began(self, what: str, now: float) -> None:
        """Nothing is served until the next group forms; `what` is changed."""
        self._events.append(GroupEvent(now, "swap", None, what, None))
        self._version += 1

    def swap_failed(self, reason: str) -> None:
        """What served before is coming back."""
        failed = f" and back ({_shortened(reason)})"
        self._amend(
            lambda e: e.kind == "swap" and not e.what.endswith(failed),
            lambda e: replace(e, what=e.what + failed),
        )

    def swap_ended(self, swap: Swap) -> None:
        self.swaps["served" if swap.phase == "serving" else "failed"] += 1

    def rank_lost(self, rank: int, how: str, now: float) -> None:
        """`how`: "gone", "silent", "was asked to end". Once until the group serves again."""
        if any(e.rank == rank and e.duration_s is None for e in self.totals().events):
            return
        # A neighbour often notices first, by a link that breaks: that loss is this one.
        noticed = [e for e in self._events if e.kind == "epoch" and e.duration_s is None]
        began = min([now, *(e.at for e in noticed)])
        self._events = [e for e in self._events if e not in noticed]
        self._events.append(GroupEvent(began, "rank", rank, f"rank {rank} {how}", None))
        self._version += 1

    def gave_up(self, epochs: int, now: float) -> None:
        """So many epochs in a row were lost before a token advanced: the next try waits."""
        self._events.append(
            GroupEvent(now, "failed", None, f"{epochs} groups in a row failed", None)
        )
        self._version += 1

    # Inside

    def _holders(self, rank: int) -> list[str]:
        """The processes that held the rank, one after the other, from the last one remembered."""
        before = self._before.instances[rank : rank + 1]
        known = [*before, *self._processes.get(rank, ())]
        return [one for one, before in zip(known, ["", *known], strict=False) if one != before]

    def _adopt(self, memory: GroupMemory, since: float) -> None:
        self._before, self._version = memory, memory.version
        self.epoch = max(self.epoch, memory.epoch)
        # It was no first start.
        ended = GroupEvent(since, "master", None, "the master restarted", None)
        self._events = [ended if e.kind == "start" else e for e in self._events]

    def _amend(
        self, which: Callable[[GroupEvent], bool], change: Callable[[GroupEvent], GroupEvent]
    ) -> None:
        """Change those of the events that are not over."""

        def amended(events: Sequence[GroupEvent]) -> list[GroupEvent]:
            return [change(e) if e.duration_s is None and which(e) else e for e in events]

        self._events = amended(self._events)[-EVENTS:]
        self._before = replace(self._before, events=tuple(amended(self._before.events)))


def _is_whole(memory: GroupMemory) -> bool:
    return len(memory.restarts) == len(memory.instances)


def _cut_off(event: GroupEvent) -> GroupEvent:
    """The very process came again: only its connection was gone."""
    if event.what.endswith(" gone"):
        return replace(event, what=f"rank {event.rank} cut off")
    return event


def _restarted(event: GroupEvent) -> GroupEvent:
    """Another process came for the rank: the one before is dead, however it was noticed."""
    if event.what.endswith(" gone"):
        return replace(event, what=f"rank {event.rank} killed")
    if event.what.endswith(" silent"):
        return replace(event, what=f"rank {event.rank} hung and was restarted")
    return event


def _shortened(reason: str) -> str:
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[: _LONGEST_REASON - 1]}…"


def _describe(event: GroupEvent) -> dict[str, object]:
    served = "ready" if event.kind == "start" else "back"
    over = event.duration_s is not None
    end = f"{served} after {event.duration_s:.1f} s" if over else f"not {served} yet"
    if over and event.kind == "swap":
        end = f"away {event.duration_s:.1f} s"
    duration_s = None if event.duration_s is None else round(event.duration_s, 3)
    told = asdict(event) | {"text": f"{event.what}, {end}", "duration_s": duration_s}
    return {name: told[name] for name in ("at", "kind", "rank", "text", "duration_s")}
