"""What the group and the engine are to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from contract.specs import GroupSpec
from runner.errors import RunnerError
from runner.master.group.history import History
from runner.master.group.swap import Swap
from runner.steps import Step, StepResult
from runner.transport.control import Join, Served, StageInfo


@dataclass(frozen=True, slots=True)
class Formation:
    """A formed group: the epoch (counter of this master's life), its stages by rank, and what they
    serve. A `trial` is of a spec that is not in force yet: it gets there by one token."""

    epoch: int
    stages: tuple[StageInfo, ...]
    served: Served
    trial: bool = False


@dataclass(frozen=True, slots=True)
class Loss:
    """Why an epoch ended; `announced` as in GroupListener.group_lost."""

    reason: str
    announced: bool = False


class RequestHolder(Protocol):
    """Who has the open requests, as an exchange of weights sees it."""

    def requests_wait(self, waits: bool) -> None:
        """Whether new requests are to be held: the weights are exchanged."""

    def must_be_waited_for(self, in_time: bool) -> bool:
        """Before the weights go: a request is on its way in, or open while there is time for it."""

    def end_open(self, error: RunnerError) -> None:
        """End every open request with it."""


class GroupListener(RequestHolder, Protocol):
    """The engine, as the group sees it. Called on the master's event loop, never re-entered."""

    def group_formed(self, formation: Formation) -> None:
        """Every data connection stands and every stage's KV cache is empty."""

    def step_returned(self, result: StepResult) -> None:
        """A step of the current epoch has come back."""

    def group_lost(self, reason: str, *, announced: bool) -> None:
        """The epoch is over; the group forms again by itself. Open requests wait for replay.

        `announced`: it was ended on purpose, which is no request's doing.
        """

    def take(self, served: Served) -> None:
        """The group goes on with other limits, between two steps."""


class RankGroup(Protocol):
    """The group, as the engine sees it: `Group`, and the tests' stand-in."""

    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def retry_after_s(self) -> int: ...
    @property
    def history(self) -> History: ...
    @property
    def served(self) -> Served | None: ...
    @property
    def swap(self) -> Swap | None: ...
    async def push(self, spec: GroupSpec) -> Swap | None: ...
    def answered(self) -> None: ...
    def not_answered(self, reason: str) -> None: ...
    def submit(self, step: Step) -> None: ...
    def abandon_epoch(self, reason: str) -> None: ...
    def note_progress(self) -> None: ...
    def stages(self) -> tuple[StageInfo | None, ...]: ...
    def joins(self) -> tuple[Join | None, ...]: ...
