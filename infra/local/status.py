"""What a running stack looks like from outside: asked of its processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from infra.local.process import PROBE_TIMEOUT_S
from infra.local.state import ProcessState, StackState, runs, supervisor_runs


@dataclass(frozen=True)
class StackStatus:
    """`topology` is the master's; None: it does not answer."""

    state: StackState
    phase: str
    topology: Mapping[str, Any] | None
    ready: Mapping[str, bool]

    @property
    def epoch(self) -> object:
        return None if self.topology is None else self.topology.get("epoch")

    def to_json(self) -> dict[str, Any]:
        return {
            "stack": self.state.stack,
            "deployment_name": self.state.deployment_name,
            "phase": self.phase,
            "reason": self.state.reason,
            "edit": asdict(self.state.edit) if self.state.edit else None,
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
        topology = _topology(client, state)
    phase = state.phase
    if not supervisor_runs(state):
        phase = "ended without `down` (its supervisor was killed)"
    return StackStatus(state, phase, topology, ready)


def _is_ready(client: httpx.Client, row: ProcessState) -> bool:
    if not runs(row.pid, row.started):
        return False
    try:
        return client.get(f"{row.url}/readyz").is_success
    except httpx.HTTPError:
        return False


def _topology(client: httpx.Client, state: StackState) -> dict[str, Any] | None:
    if not state.master_url:
        return None
    try:
        found = client.get(f"{state.master_url}/topology").json()
    except (httpx.HTTPError, ValueError):
        return None
    return found if isinstance(found, dict) else None
