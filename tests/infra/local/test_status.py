from __future__ import annotations

import re
import time

import pytest

from infra.local.status_view import TokenRate, render_pipeline

RANK = {
    "rank": 0,
    "node": "n1",
    "devices": "0",
    "layers": [0, 16],
    "joined": True,
    "loaded": True,
    "weight_bytes": 3_000_000_000,
    "kv_bytes": 500_000_000,
    "compute_ms": 12.34,
    "bubble_ratio": 0.25,
    "restarts": 2,
}
TOPOLOGY = {
    "state": "ready",
    "epoch": 3,
    "requests_running": 4,
    "requests_waiting": 1,
    "micro_batches": 2,
    "kv_tokens": 4096,
    "kv_tokens_used": 70,
    "kv_tokens_reserved": 600,
    "replays": 5,
    "ranks": [RANK, RANK | {"rank": 1, "loaded": False, "weight_bytes": None}],
}


def test_a_line_for_the_group_and_one_for_each_rank() -> None:
    head, _, _, first, second = render_pipeline(TOPOLOGY, 31.25).split("\n")
    assert head == (
        "4 requests running, 1 waiting, KV 70 used / 600 reserved of 4,096 tokens,"
        " 2 micro-batches, 5 replays, 31.2 tokens/s"
    )
    cells = ["0", "n1", "0", "0-15", "loaded", "3.0 GB", "500.0 MB", "12.3 ms", "25%"]
    assert re.split(r" {2,}", first) == cells
    assert second.split()[4:] == ["loading", "-", "500.0", "MB", "-", "-"]


def test_one_micro_batch_has_no_bubbles_to_tell_of() -> None:
    head, _, _, first, _ = render_pipeline(TOPOLOGY | {"micro_batches": 1}).split("\n")
    assert "one request uses one rank at a time" in head
    assert first.endswith("12.3 ms        -")


def test_a_rate_needs_two_looks_at_one_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rate = TokenRate()
    assert rate(100) is None
    now = 12.0
    assert rate(160) == 30
    now = 13.0
    assert rate(5) is None
