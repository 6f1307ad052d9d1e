"""A running stack's status as text of a width, and live in the terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.live import Live
from rich.text import Text

from infra.local.status import StackStatus
from infra.plan.balance import balance_advice
from infra.plan.table import byte_size, table_lines

INTERVAL_S = 1.0
LAST_EVENTS = 5
_PROCESS_HEADINGS = ("process", "pid", "restarts", "ready", "url")
_PROCESS_DROPS = ("url", "pid")
_RANK_HEADINGS = (
    "rank", "node", "device", "layers", "state", "weights", "KV cache", "step", "waiting"
)  # fmt: skip
_RANK_DROPS = ("node", "device", "weights", "KV cache")
_EDITS = {"running": "is being brought in", "done": "has answered", "failed": "failed"}
_RANK_NUMBERS = range(5, len(_RANK_HEADINGS))


def terminal_width() -> int | None:
    """None where the output is no terminal: a pipe gets every column."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def render_status(status: StackStatus, width: int | None = None) -> str:
    """A line about the stack, a table of its processes, and the last events."""
    parts = [_head(status, width), _processes(status, width), _events(status)]
    parts.append(_advice(status, width))
    return "\n\n".join("\n".join(part) for part in parts if part)


def render_frame(status: StackStatus, tokens_per_s: float | None, width: int, height: int) -> str:
    """What `--watch` shows: the ranks before the processes, cut to the size."""
    topology = status.topology
    ranks = (
        ["the master does not answer"]
        if topology is None
        else render_pipeline(topology, tokens_per_s, width).split("\n")
    )
    parts = [_head(status, width), ranks, _processes(status, width), _events(status)]
    return fit_text("\n\n".join("\n".join(part) for part in parts if part), width, height)


def render_pipeline(
    topology: Mapping[str, Any], tokens_per_s: float | None = None, width: int | None = None
) -> str:
    """A paragraph about the group and a table of its ranks."""
    lone = topology["micro_batches"] <= 1
    facts = [
        f"{topology['requests_running']} requests running",
        f"{topology['requests_waiting']} waiting",
        f"KV {topology['kv_tokens_used']:,} used / {topology['kv_tokens_reserved']:,} reserved"
        f" of {topology['kv_tokens']:,} tokens",
        "one request uses one rank at a time"
        if lone
        else f"{topology['micro_batches']} micro-batches",
        f"{topology['replays']} replays",
    ]
    if tokens_per_s is not None:
        facts.append(f"{tokens_per_s:.1f} tokens/s")
    ready = topology["state"] == "ready"
    ranks = (_rank_row(rank, ready=ready, lone=lone) for rank in topology["ranks"])
    rows: list[tuple[str, ...]] = [_RANK_HEADINGS, *ranks]
    table = table_lines(rows, right=_RANK_NUMBERS, width=width, drop=_RANK_DROPS)
    return "\n".join([*_wrapped(", ".join(facts), width), "", *table])


def fit_text(text: str, width: int, height: int) -> str:
    """Long lines wrapped, and no more lines than there is room for."""
    lines = [piece for line in text.split("\n") for piece in _wrapped(line, width)]
    if len(lines) > height:
        left = len(lines) - height + 1
        lines = [*lines[: height - 1], f"... {left} more lines in a higher window"]
    return "\n".join(lines)


def watch_status(read: Callable[[], StackStatus]) -> None:
    """The status and the pipeline, live until Ctrl-C; `read` raises when the stack is gone."""
    speed = TokenRate()

    def render(width: int, height: int) -> str:
        status = read()
        topology = status.topology
        rate = None if topology is None else speed(int(topology["generated_tokens"]))
        return render_frame(status, rate, width, height)

    show_live(render)


def show_live(render: Callable[[int, int], str]) -> None:
    """`render` for the terminal's columns and lines, now and once a second until Ctrl-C.

    On the alternate screen: what was there comes back. A pipe gets one frame after the other.
    """

    def frame() -> str:
        size = shutil.get_terminal_size()
        return render(size.columns, size.lines)

    try:
        if not sys.stdout.isatty():
            while True:
                print(frame(), end="\n\n", flush=True)
                time.sleep(INTERVAL_S)
        with Live(Text(frame()), auto_refresh=False, screen=True) as live:
            while True:
                time.sleep(INTERVAL_S)
                live.update(Text(frame()), refresh=True)
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


def _head(status: StackStatus, width: int | None) -> list[str]:
    state = status.state
    head = f"{state.deployment_name} (stack {state.stack}): {status.phase}"
    if state.reason:
        head += f": {state.reason}"
    if status.epoch is not None:
        head += f", epoch {status.epoch}"
    edit = state.edit
    edited = f"the last edit {_EDITS[edit.phase]}: {edit.text}" if edit else ""
    return [*_wrapped(head, width), *(_wrapped(edited, width) if edited else [])]


def _processes(status: StackStatus, width: int | None) -> list[str]:
    rows = [_PROCESS_HEADINGS] + [
        (
            row.name,
            str(row.pid or "-"),
            str(row.restarts),
            "yes" if status.ready[row.name] else "no",
            row.url,
        )
        for row in status.state.processes
    ]
    return table_lines(rows, width=width, drop=_PROCESS_DROPS)


def _events(status: StackStatus) -> list[str]:
    """The newest first: what does not fit is the oldest."""
    events = [] if status.topology is None else status.topology["events"][-LAST_EVENTS:]
    return [
        f"{time.strftime('%H:%M:%S', time.localtime(event['at']))}  {event['text']}"
        for event in reversed(events)
    ]


def _advice(status: StackStatus, width: int | None) -> list[str]:
    advice = "" if status.topology is None else balance_advice(status.topology)
    return _wrapped(f"note: {advice}", width) if advice else []


def _rank_row(rank: Mapping[str, Any], *, ready: bool, lone: bool) -> tuple[str, ...]:
    first, end = rank["layers"]
    loaded = rank["loaded"]
    state = "loaded" if loaded else "loading" if rank["joined"] else "gone"
    # Means of steps that are over say nothing of a group that computes none.
    busy, bubble = (rank["compute_ms"], rank["bubble_ratio"]) if ready and loaded else (0, None)
    return (
        str(rank["rank"]),
        rank["node"] or "-",
        rank["devices"],
        f"{first}-{end - 1}",
        state,
        byte_size(rank["weight_bytes"]),
        byte_size(rank["kv_bytes"]),
        f"{busy:.1f} ms" if busy else "-",
        "-" if bubble is None or lone else f"{bubble:.0%}",
    )


def _wrapped(line: str, width: int | None) -> list[str]:
    if width is None or len(line) <= width:
        return [line]
    return textwrap.wrap(line, max(width, 1), break_on_hyphens=False)
