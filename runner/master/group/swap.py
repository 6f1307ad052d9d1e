"""A spec on its way in, as far as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from contract.specs import GroupSpec, spec_hash
from runner.transport.control import Served

Phase: TypeAlias = Literal["preparing", "draining", "loading", "serving", "failed"]
RankState: TypeAlias = Literal["waiting", "fetching", "prepared", "loading", "loaded", "failed"]
RUNNING: tuple[Phase, ...] = ("preparing", "draining", "loading")


class SwapRunning(Exception):
    """Another spec is on its way in; the message names it."""


@dataclass(slots=True)
class RankOfSwap:
    """How far one rank of the new spec is; sizes in bytes, 0 where not known. `since` it was
    told to fetch or to load, `moved` when something was heard of that last, and `lost` (when, and
    how it was told) is set while its process is not there. While it waits it may be `restoring`,
    having what is in force first, and the sizes are of that; once only, None where it has not."""

    rank: int
    moved: float
    since: float
    state: RankState = "waiting"
    fetched_bytes: int = 0
    wanted_bytes: int = 0
    loaded_ahead: bool = False
    """Prepared, and in memory beside what is served."""
    reason: str = ""
    lost: tuple[float, str] | None = None
    restoring: bool | None = None


class Swap:
    """One spec on its way in, or the last one that was. `served` is None while the master looks for
    the commit of its model. Times are unix seconds."""

    def __init__(self, spec: GroupSpec, now: float) -> None:
        self.spec, self.since = spec, now
        self.spec_hash = spec_hash(spec)
        self.phase: Phase = "preparing"
        self.reason = ""
        self.served: Served | None = None
        self.ranks = [RankOfSwap(rank, now, now) for rank in range(len(spec.ranks))]

    @property
    def running(self) -> bool:
        return self.phase in RUNNING

    def enter(self, phase: Phase, now: float, reason: str = "") -> None:
        self.phase, self.reason, self.since = phase, reason, now

    @property
    def line(self) -> str:
        """How far it is, for the log."""
        ranks = (
            f"rank {item.rank} {item.state}, {item.fetched_bytes} of {item.wanted_bytes} bytes"
            for item in self.ranks
        )
        return f"{self.phase}: {'; '.join(ranks)}"

    def describe(self) -> dict[str, object]:
        """As GET /group/spec tells it."""
        return {
            "spec_hash": self.spec_hash,
            "model_name": self.spec.model_name,
            "phase": self.phase,
            "reason": self.reason,
            "since": round(self.since, 3),
            "ranks": [
                {
                    "rank": item.rank,
                    "state": item.state,
                    "fetched_bytes": item.fetched_bytes,
                    "wanted_bytes": item.wanted_bytes,
                    "loaded_ahead": item.loaded_ahead,
                    "reason": item.reason,
                }
                for item in self.ranks
            ],
        }
