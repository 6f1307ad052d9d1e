"""What a running stack looks like from outside: `splitstack status`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from infra.kept_process import PROBE_TIMEOUT_S
from infra.local_state import ProcessState, StackState, runs, supervisor_runs

_HEADINGS = ("process", "pid", "restarts", "ready", "url")


@dataclass(frozen=True)
class StackStatus:
    """`epoch` None: the rank group has not formed, or its master does not answer."""

    state: StackState
    phase: str
    epoch: object
    ready: Mapping[str, bool]

    def to_json(self) -> dict[str, Any]:
        return {
            "stack": self.state.stack,
            "deployment_name": self.state.deployment_name,
            "phase": self.phase,
            "reason": self.state.reason,
            "epoch": self.epoch,
            "master_url": self.state.master_url,
            "url": self.state.front_url,
            "supervisor_pid": self.state.pid,
            "processes": [
                {
                    "name": row.name,
                    "tier": row.tier,
                    "pid": row.pid,
                    "restarts": row.restarts,
                    "ready": self.ready[row.name],
                    "url": row.url,
                    "log": row.log,
                }
                for row in self.state.processes
            ],
        }


def read_status(state: StackState) -> StackStatus:
    """Asks every process now."""
    with httpx.Client(timeout=PROBE_TIMEOUT_S, trust_env=False) as client:
        ready = {row.name: _is_ready(client, row) for row in state.processes}
        epoch = _epoch(client, state)
    phase = state.phase
    if not supervisor_runs(state):
        phase = "ended without `down` (its supervisor was killed)"
    return StackStatus(state, phase, epoch, ready)


def render_status(status: StackStatus) -> str:
    """A line about the stack and a table of its processes."""
    state = status.state
    head = f"{state.deployment_name} (stack {state.stack}): {status.phase}"
    if state.reason:
        head += f": {state.reason}"
    if status.epoch is not None:
        head += f", epoch {status.epoch}"
    rows = [_HEADINGS] + [
        (
            row.name,
            str(row.pid or "-"),
            str(row.restarts),
            "yes" if status.ready[row.name] else "no",
            row.url,
        )
        for row in state.processes
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([head, "", *lines])


def _is_ready(client: httpx.Client, row: ProcessState) -> bool:
    if not runs(row.pid, row.started):
        return False
    try:
        return client.get(f"{row.url}/readyz").is_success
    except httpx.HTTPError:
        return False


def _epoch(client: httpx.Client, state: StackState) -> object:
    if not state.master_url:
        return None
    try:
        return client.get(f"{state.master_url}/topology").json().get("epoch")
    except (httpx.HTTPError, ValueError, AttributeError):
        return None
