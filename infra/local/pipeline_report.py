"""The pipeline as the master's /topology tells it, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_HEADINGS = (
    "rank",
    "node",
    "device",
    "layers",
    "weights",
    "KV cache",
    "step",
    "waiting",
    "restarts",
)


def render_pipeline(topology: Mapping[str, Any], tokens_per_s: float | None = None) -> str:
    """A line about the group and a table of its ranks."""
    speed = "" if tokens_per_s is None else f", {tokens_per_s:.1f} tokens/s"
    head = (
        f"epoch {topology['epoch']}, {topology['requests_running']} requests running, "
        f"{topology['requests_waiting']} waiting, {topology['micro_batches']} micro-batches, "
        f"{topology['replays']} replays{speed}"
    )
    rows = [_HEADINGS, *(_row(rank) for rank in topology["ranks"])]
    return "\n".join([head, "", *columns(rows)])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines, each column as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _row(rank: Mapping[str, Any]) -> tuple[str, ...]:
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
