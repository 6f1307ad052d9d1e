"""What a running stack looks like from outside: `splitstack status`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from rich.live import Live
from rich.text import Text

from infra.local.process import PROBE_TIMEOUT_S
from infra.local.state import ProcessState, StackState, runs, supervisor_runs
from infra.plan.table import table_lines

INTERVAL_S = 1.0
_PROCESS_HEADINGS = ("process", "pid", "restarts", "ready", "url")
_RANK_HEADINGS = (
    "rank", "node", "device", "layers", "weights", "KV cache", "step", "waiting", "restarts"
)  # fmt: skip
_RANK_NUMBERS = range(4, len(_RANK_HEADINGS))


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


def render_status(status: StackStatus) -> str:
    """A line about the stack and a table of its processes."""
    state = status.state
    head = f"{state.deployment_name} (stack {state.stack}): {status.phase}"
    if state.reason:
        head += f": {state.reason}"
    if status.epoch is not None:
        head += f", epoch {status.epoch}"
    rows = [_PROCESS_HEADINGS] + [
        (
            row.name,
            str(row.pid or "-"),
            str(row.restarts),
            "yes" if status.ready[row.name] else "no",
            row.url,
        )
        for row in state.processes
    ]
    return "\n".join([head, "", *table_lines(rows)])


def render_pipeline(topology: Mapping[str, Any], tokens_per_s: float | None = None) -> str:
    """A line about the group and a table of its ranks."""
    speed = "" if tokens_per_s is None else f", {tokens_per_s:.1f} tokens/s"
    head = (
        f"epoch {topology['epoch']}, {topology['requests_running']} requests running, "
        f"{topology['requests_waiting']} waiting, {topology['micro_batches']} micro-batches, "
        f"{topology['replays']} replays{speed}"
    )
    rows = [_RANK_HEADINGS, *(_rank_row(rank) for rank in topology["ranks"])]
    return "\n".join([head, "", *table_lines(rows, right=_RANK_NUMBERS)])


def watch_status(read: Callable[[], StackState]) -> None:
    """The status and the pipeline, live until Ctrl-C; `read` raises when the stack is gone."""
    speed = TokenRate()

    def render() -> str:
        status = read_status(read())
        text = render_status(status)
        if status.topology is None:
            return text
        tokens_per_s = speed(int(status.topology["generated_tokens"]))
        return f"{text}\n\n{render_pipeline(status.topology, tokens_per_s)}"

    show_live(render)


def show_live(read: Callable[[], str]) -> None:
    """`read` now and once a second until Ctrl-C."""
    with Live(Text(read()), auto_refresh=False, screen=False) as live:
        try:
            while True:
                time.sleep(INTERVAL_S)
                live.update(Text(read()), refresh=True)
        except KeyboardInterrupt:
            return


class TokenRate:
    """Tokens per second between two looks at a counter."""

    def __init__(self) -> None:
        self._tokens: int | None = None
        self._at = 0.0

    def __call__(self, tokens: int) -> float | None:
        """None at the first look, and when the counter began anew."""
        now, before = time.monotonic(), self._tokens
        elapsed, self._tokens, self._at = now - self._at, tokens, now
        if before is None or tokens < before or elapsed <= 0:
            return None
        return (tokens - before) / elapsed


def _rank_row(rank: Mapping[str, Any]) -> tuple[str, ...]:
    first, end = rank["layers"]
    bubble = rank["bubble_ratio"]
    return (
        str(rank["rank"]),
        rank["node"] or "-",
        rank["devices"],
        f"{first}-{end - 1}",
        _megabytes(rank["weight_bytes"]),
        _megabytes(rank["kv_bytes"]),
        f"{rank['compute_ms']:.1f} ms" if rank["compute_ms"] else "-",
        "-" if bubble is None else f"{bubble:.0%}",
        str(rank["restarts"]),
    )


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:,.0f} MB"


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
