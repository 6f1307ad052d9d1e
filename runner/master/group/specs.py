"""Which spec the group serves, and how another one takes its place. Pure: it is told the time.

preparing  every rank of the new spec fetches and checks its part, and the master its tokenizer;
           the old spec serves. Whoever cannot ends the swap, and so does a rank that is lost
draining   all are prepared: new requests wait, running ones end, or their time is up
loading    the weights are exchanged, an epoch is formed and one token computed. Whatever goes
           wrong until then brings the old spec back
serving    the new spec is in force
failed     the old one is, and `reason` says why
"""

from __future__ import annotations

from dataclasses import dataclass

from contract.specs import GroupSpec, spec_hash
from runner.errors import NotServing
from runner.master.group.spec_changes import is_free
from runner.master.group.swap import RankOfSwap, RankState, Swap, SwapRunning
from runner.transport.control import Served

# A process whose connection is gone may only be cut off: it dials again each second.
BACK_WITHIN_S = 10.0
# A stage ends itself when the load of what is in force stalls; it is heard of long before.
RESTORING_STALLS = 10
# After a swap that failed the old spec comes first, as long as there is hope.
RETURNS_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Order:
    """What a rank is to have: prepared, and loaded where `load`. `in_force`: there is nothing else
    to serve."""

    served: Served
    load: bool
    in_force: bool


class Specs:
    """`in_force` is what is served, or loaded to be; None while nobody has said. `swap` is the one
    that runs, or the last one.

    `returning`: a swap failed after weights were dropped, and the old ones are not back yet.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self.in_force: Served | None = None
        self.swap: Swap | None = None
        self.returning = False

    @property
    def running(self) -> Swap | None:
        return self.swap if self.swap is not None and self.swap.running else None

    @property
    def to_form(self) -> Served | None:
        """What the next epoch is of."""
        swap = self.running
        return swap.served if swap is not None and swap.phase == "loading" else self.in_force

    @property
    def requests_wait(self) -> bool:
        """Whether new requests are held, for the weights are about to be others."""
        swap = self.running
        exchanging = swap is not None and swap.phase != "preparing"
        return self.in_force is not None and (exchanging or self.returning)

    @property
    def keeps_the_model(self) -> bool:
        """Whether requests that run can go on with the new spec."""
        old, swap = self.in_force, self.running
        return (
            old is not None
            and swap is not None
            and swap.served is not None
            and swap.served.commit == old.commit
            and swap.spec.model_name == old.spec.model_name
        )

    def lacks(self, rank: int, holds: str) -> bool:
        """Whether a rank that holds the weights of this spec has not those in force: what runs
        waits for it."""
        served = self.in_force
        return served is not None and rank < len(served.spec.ranks) and holds != served.spec_hash

    def order(self, rank: int, *, lacking: bool = False) -> Order | None:
        """None for a rank that has no part. `lacking`: it has not what is in force, and may get it:
        that comes first, until the weights are exchanged."""
        swap = self.running
        if lacking and self.in_force is not None and (swap is None or swap.phase != "loading"):
            return Order(self.in_force, load=True, in_force=True)
        if swap is not None and swap.served is not None and rank < len(swap.ranks):
            return Order(swap.served, load=swap.phase == "loading", in_force=False)
        if swap is not None and swap.phase == "loading":
            return None
        served = self.in_force
        if served is None or rank >= len(served.spec.ranks):
            return None
        return Order(served, load=True, in_force=True)

    # A spec is pushed

    def push(self, spec: GroupSpec, now: float) -> Swap | None:
        """The swap that is made of it, or that is made of it already; None where it is in force
        now. Raises SwapRunning, and NotServing while a former spec may still come back."""
        digest, old = spec_hash(spec), self.in_force
        if (swap := self.running) is not None:
            if swap.spec_hash == digest:
                return swap
            if swap.phase != "preparing" or old is None or not is_free(old.spec, spec):
                raise SwapRunning(
                    f"spec {swap.spec_hash[:12]} ({swap.spec.model_name}) is being brought in, its"
                    f" phase is {swap.phase}: push again when it has ended"
                )
            # Nothing was touched yet, and what serves is asked for.
            swap.enter("failed", now, f"taken back: spec {digest[:12]} was pushed")
        if old is not None and is_free(old.spec, spec):
            if old.spec_hash != digest:
                self.in_force = Served(spec, old.commit)
            return None
        if self.returning and self.swap is not None and now - self.swap.since < RETURNS_WITHIN_S:
            raise NotServing(
                f"the former spec is coming back ({self.swap.reason}): push again when it serves"
            )
        self.swap = Swap(spec, now)
        return self.swap

    def commit_known(self, of: Swap, commit: str, now: float) -> None:
        """The master has what it needs of the new model itself."""
        if of is self.running and of.served is None:
            of.served = Served(of.spec, commit)
            for item in of.ranks:
                item.moved = now
            self._next_of_prepared(of, now)

    def fail(self, of: Swap, reason: str, now: float) -> None:
        """The new spec cannot be; the old one stays or comes back."""
        if of is not self.running:
            return
        self.returning |= of.phase == "loading" and self.in_force is not None
        of.enter("failed", now, reason)

    # What is heard of a rank

    def told(self, rank: int, digest: str, now: float) -> None:
        """It was told to have its part of a spec here, or to load it."""
        if item := self._rank(rank, digest):
            loading = self.running is not None and self.running.phase == "loading"
            item.state, item.moved, item.since = "loading" if loading else "fetching", now, now
            item.restoring = False
        elif (item := self._waiting(rank, digest)) and item.restoring is None:
            item.restoring, item.moved = True, now

    def progress(self, rank: int, digest: str, fetched: int, wanted: int, now: float) -> None:
        if item := self._rank(rank, digest) or self._waiting(rank, digest):
            if item.fetched_bytes != fetched:
                item.moved = now
            item.fetched_bytes, item.wanted_bytes = fetched, wanted

    def prepared(self, rank: int, digest: str, now: float, *, ahead: bool = False) -> None:
        """It has its part at hand; `ahead`: in memory too."""
        item, swap = self._rank(rank, digest), self.running
        if item is None or swap is None or swap.phase != "preparing":
            return
        item.state, item.moved, item.loaded_ahead = "prepared", now, ahead
        self._next_of_prepared(swap, now)

    def loaded(self, rank: int, digest: str, now: float) -> None:
        if item := self._rank(rank, digest):
            item.state, item.moved = "loaded", now
        else:
            self._restored(rank, digest, now)

    def holds(self, rank: int, digest: str, now: float) -> None:
        """It has these weights already, from a try that failed."""
        item, swap = self._rank(rank, digest), self.running
        if item is None or swap is None:
            return
        if swap.phase == "preparing" and item.state != "prepared":
            self.prepared(rank, digest, now, ahead=True)
        elif swap.phase == "loading" and item.state != "loaded":
            self.loaded(rank, digest, now)

    def rank_failed(self, rank: int, digest: str, reason: str, now: float) -> None:
        """It cannot prepare or load its part."""
        swap = self.running
        if swap is not None and (item := self._rank(rank, digest)):
            self._give_up(swap, item, f": {reason}", now)
        else:
            self._restored(rank, digest, now)

    def rank_lost(self, rank: int, reason: str, now: float) -> None:
        """Its process is gone, or cut off."""
        swap = self.running
        if swap is not None and rank < len(swap.ranks):
            swap.ranks[rank].lost = now, reason

    def rank_joined(self, rank: int, *, same_process: bool, now: float) -> None:
        """A process that is another one has nothing of what the one before had prepared."""
        swap = self.running
        if swap is None or rank >= len(swap.ranks):
            return
        item = swap.ranks[rank]
        if item.lost is not None and not same_process and item.state != "waiting":
            self._give_up(swap, item, f": {item.lost[1]}", now)
        if item.restoring and not same_process:  # what it died of may end the next one too
            item.restoring = False
        item.lost = None

    # What becomes of the group

    def drained(self, now: float) -> None:
        swap = self.running
        if swap is not None and swap.phase == "draining":
            swap.enter("loading", now)

    def formed(self) -> None:
        """An epoch of what was to be formed."""
        if self.to_form is self.in_force:
            self.returning = False

    def answered(self, now: float) -> None:
        """A token was computed by the new weights."""
        swap = self.running
        if swap is not None and swap.phase == "loading":
            self.in_force = swap.served
            swap.enter("serving", now)

    def not_answered(self, served: Served, reason: str, now: float) -> None:
        """What was to be formed did not form, was lost, or could compute nothing."""
        swap = self.running
        if swap is not None and swap.phase == "loading" and swap.served == served:
            self.fail(swap, reason, now)

    def look(self, now: float) -> None:
        """End a swap in which a rank is not heard of, or takes longer than it may."""
        swap = self.running
        if swap is None or swap.served is None:
            return
        for item in swap.ranks:
            gone = item.lost is not None and now - item.lost[0] > BACK_WITHIN_S
            if gone and item.lost is not None and item.state != "waiting":
                self._give_up(swap, item, f": {item.lost[1]}", now)
                return
        if swap.phase == "draining":
            return
        done: tuple[RankState, ...] = ("prepared",) if swap.phase == "preparing" else ("loaded",)
        limit = swap.spec.load_timeout_s
        for item in swap.ranks:
            if item.state in done:
                continue
            if swap.phase == "preparing" and (missing := self._stalled(item, now)):
                self._give_up(swap, item, f" {missing}", now)
                return
            if limit is not None and item.state != "waiting" and now - item.since > limit:
                self._give_up(swap, item, f" took longer than load_timeout_s, {limit:g} s", now)
                return

    def _stalled(self, item: RankOfSwap, now: float) -> str:
        """What it has not done for too long; "" where it may still."""
        limit_s = self._stall_s
        missing = "has not joined" if item.state == "waiting" else "got no byte"
        if item.restoring and item.lost is None:
            limit_s, missing = limit_s * RESTORING_STALLS, "has not got what is in force"
        return f"{missing} for {limit_s:g} s" if now - item.moved > limit_s else ""

    def _give_up(self, swap: Swap, item: RankOfSwap, reason: str, now: float) -> None:
        item.state, item.reason = "failed", reason.removeprefix(": ").strip()
        self.fail(swap, f"rank {item.rank}{reason}", now)

    # Inside

    def _rank(self, rank: int, digest: str) -> RankOfSwap | None:
        swap = self.running
        mine = swap is not None and swap.spec_hash == digest and rank < len(swap.ranks)
        return swap.ranks[rank] if swap is not None and mine else None

    def _waiting(self, rank: int, digest: str) -> RankOfSwap | None:
        """The rank, where it waits for the new spec and `digest` is of the one in force."""
        swap, old = self.running, self.in_force
        if swap is None or old is None or old.spec_hash != digest or rank >= len(swap.ranks):
            return None
        return swap.ranks[rank] if swap.ranks[rank].state == "waiting" else None

    def _restored(self, rank: int, digest: str, now: float) -> None:
        """It has what is in force, or cannot have it."""
        if item := self._waiting(rank, digest):
            item.restoring, item.moved = False, now
            item.fetched_bytes = item.wanted_bytes = 0

    def _next_of_prepared(self, swap: Swap, now: float) -> None:
        if swap.served is not None and all(item.state == "prepared" for item in swap.ranks):
            # With nothing in force there is nothing to drain.
            swap.enter("draining" if self.in_force is not None else "loading", now)
