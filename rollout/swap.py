"""What the master says of its spec and of the swap to another one, and that as sentences."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

FAILED = "failed"
DRAINING = "draining"
_UNITS = ("B", "kB", "MB", "GB", "TB")


class _Said(BaseModel):
    """A newer master may say more."""

    model_config = ConfigDict(extra="ignore")


class RankProgress(_Said):
    """One rank's part of a swap; bytes are those of its files."""

    rank: int
    state: str
    fetched_bytes: int = 0
    wanted_bytes: int = 0
    reason: str | None = None

    @property
    def line(self) -> str:
        """As in "rank 1 fetching 0.3 of 1.2 GB"."""
        if self.state not in ("waiting", "fetching") or not self.wanted_bytes:
            return f"rank {self.rank} {self.state}"
        of = _of(self.fetched_bytes, self.wanted_bytes)
        first = " for what is in force first," if self.state == "waiting" else ""
        return f"rank {self.rank} {self.state}{first} {of}"


class Swap(_Said):
    """The swap that runs, or the last one."""

    spec_hash: str
    model_name: str
    phase: str
    reason: str | None = None
    ranks: list[RankProgress] = []

    @property
    def line(self) -> str:
        """How far it is, in one line."""
        if self.phase == DRAINING:
            return f"draining: what runs is finished before {self.model_name} is loaded"
        ranks = ", ".join(rank.line for rank in self.ranks)
        return f"{self.phase} {self.model_name}" + (f": {ranks}" if ranks else "")

    @property
    def why_failed(self) -> str:
        """The reason, each rank's own where it does not say it already."""
        reason = self.reason or ""
        own = [
            f"rank {rank.rank}: {rank.reason}"
            for rank in self.ranks
            if rank.reason and rank.reason not in reason
        ]
        return "; ".join([reason, *own] if reason else own) or "the master gives no reason"


class Serving(_Said):
    """What answers requests."""

    spec_hash: str
    model_name: str


class GroupState(_Said):
    """The answer to GET /group/spec; `serving` None: nothing answers yet."""

    serving: Serving | None = None
    swap: Swap | None = None

    def serves(self, spec_hash: str) -> bool:
        return self.serving is not None and self.serving.spec_hash == spec_hash

    def swap_to(self, spec_hash: str) -> Swap | None:
        """Its swap to that very spec."""
        return self.swap if self.swap and self.swap.spec_hash == spec_hash else None

    @property
    def goes_on(self) -> str:
        """What users have while the swap fails."""
        if self.serving is None:
            return "nothing is served"
        return f"{self.serving.model_name} goes on serving"


def parse_state(document: Any) -> GroupState:
    """Raises ValueError."""
    return GroupState.model_validate(document)


def _of(part: int, whole: int) -> str:
    """Both in the unit of the whole."""
    power = 0
    while whole >= 1000 ** (power + 1) and power < len(_UNITS) - 1:
        power += 1
    scale = 1000**power
    return f"{part / scale:.1f} of {whole / scale:.1f} {_UNITS[power]}"
