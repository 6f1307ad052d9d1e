"""Who may dial the master: stages that join, and the one that returns an epoch's results."""

from __future__ import annotations

from runner.master.group.pipeline_ends import PipelineEnds
from runner.transport.control import Served
from runner.transport.frames import Epoch
from runner.transport.handshake import NO_EPOCH, Hello, Role, differing_specs


def refusal(hello: Hello, served: Served | None, ends: PipelineEnds | None, current: Epoch) -> str:
    """Why the connection is refused, "" accepts. `served` is what the epoch `current`, the last
    one, is of, and `ends` are that epoch's where it is in force."""
    if hello.role == Role.CONTROL:
        return "" if hello.epoch == NO_EPOCH else "a control connection is of no epoch"
    last = None if served is None else len(served.spec.ranks) - 1
    if hello.role != Role.RETURN or hello.rank != last:
        return (
            f"role = {hello.role.name}, rank {hello.rank}: the master accepts control, and"
            f" the return of rank {last}"
        )
    if ends is None or hello.epoch != ends.epoch:
        return f"epoch {hello.epoch} is not in force; the last one is {current}"
    assert served is not None
    if differing := differing_specs(hello, served.spec_hash):
        return differing
    return "" if ends.wants_return else f"epoch {hello.epoch} has its return already"
