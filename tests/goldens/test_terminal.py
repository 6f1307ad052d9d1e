"""What `splitstack plan` shows, and `splitstack status` and its --watch at three widths."""

from __future__ import annotations

import time
from typing import Any

import pytest

from infra.local.state import ProcessState, StackState
from infra.local.status import StackStatus
from infra.local.status_view import render_frame, render_status
from infra.plan.report import render_plan
from tests.goldens.recorded_file import check_recorded
from tests.infra.deployments import LOCAL, PHI, planned

SIZES = ((60, 15), (80, 24), (120, 40))
NAMES = ("inference-server", "proxy-block-pytorch-block-3", "master", "stage-0", "stage-1")


def rank(number: int, **changes: object) -> dict[str, object]:
    return {
        "rank": number,
        "node": "",
        "devices": "cpu",
        "layers": [19 * number, 19 + 11 * number],
        "joined": True,
        "loaded": True,
        "restarts": number,
        "weight_bytes": 382_259_200 - number * 113_244_160,
        "kv_bytes": 1_876_543_210,
        "compute_ms": 31.25,
        "bubble_ratio": 0.5,
    } | changes


def topology(*ranks: dict[str, object], **changes: object) -> dict[str, Any]:
    return {
        "state": "ready",
        "epoch": 3,
        "requests_running": 1,
        "requests_waiting": 0,
        "micro_batches": 1,
        "kv_tokens": 31_416,
        "kv_tokens_used": 62,
        "kv_tokens_reserved": 512,
        "replays": 5,
        "generated_tokens": 77,
        "ranks": list(ranks),
        "events": [
            {"at": 1000.0, "kind": "start", "rank": None, "text": "started, ready after 14.0 s"},
            {"at": 2000.0, "kind": "rank", "rank": 1, "text": "rank 1 killed, back after 5.2 s"},
        ],
    } | changes


DEAD = rank(1, loaded=False, joined=False, weight_bytes=None, kv_bytes=None)
STATES = {
    "one request": ("ready", "", topology(rank(0), rank(1))),
    "many requests": (
        "ready",
        "",
        topology(rank(0), rank(1), requests_running=8, micro_batches=2),
    ),
    "a rank is gone": (
        "not ready",
        "master: waiting for stages: rank 1 has not joined",
        topology(rank(0), DEAD, state="starting"),
    ),
    "a rank is loading": (
        "not ready",
        "master: waiting for stages: rank 1 is loading its weights",
        topology(rank(0), DEAD | {"joined": True}, state="starting", epoch=None),
    ),
    "four ranks": ("ready", "", topology(*(rank(0, rank=number) for number in range(4)))),
    "no master": ("not ready", "master does not answer yet", None),
}


@pytest.fixture(autouse=True)
def _greenwich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "localtime", time.gmtime)


def status_of(name: str) -> StackStatus:
    phase, reason, told = STATES[name]
    processes = tuple(
        ProcessState(item, item, 100 + i, 1, i % 2, f"http://127.0.0.1:{40000 + i}", f"{item}.log")
        for i, item in enumerate(NAMES)
    )
    state = StackState("local", "local", 1, 1, phase, reason, processes=processes)
    return StackStatus(state, phase, told, dict.fromkeys(NAMES, phase == "ready"))


def test_frames_of_watch() -> None:
    found = {}
    for name in STATES:
        for width, height in SIZES:
            lines = render_frame(status_of(name), 31.25, width, height).split("\n")
            assert len(lines) <= height
            assert max(map(len, lines)) <= width
            found[f"{name}, {width}x{height}"] = lines
    check_recorded("terminal-watch", found)


def test_every_rank_is_seen_in_a_small_window() -> None:
    frame = render_frame(status_of("four ranks"), 31.25, 60, 15)
    assert all(f"\n{number}     0-18" in frame for number in range(4))


def test_status() -> None:
    widths = [*(width for width, _ in SIZES), None]
    found = {
        f"{name}, {width or 'a pipe'}": render_status(status_of(name), width).split("\n")
        for name in ("one request", "a rank is gone")
        for width in widths
    }
    check_recorded("terminal-status", found)


def test_the_plan() -> None:
    rank_0, rank_1 = "per_rank_params[0].memory=4G", "per_rank_params[1].memory=2G"
    both = "per_rank_params=[{rank: 0}, {rank: 1}]"
    gpus = [f"per_rank_params[{rank}].device_memory=24Gi" for rank in range(4)]
    demo = "common_params.model_name=demo:smollm2-135m-instruct"
    plans = {
        "memory of every rank": planned(LOCAL, both, rank_0, rank_1),
        "of one": planned(LOCAL, both, rank_0),
        "of none": planned(LOCAL),
        "one rank, the model's own length": planned(
            LOCAL, "nnodes=1", "per_rank_params=[{rank: 0, memory: 4G}]",
            "common_params.max_model_len=null",
        ),
        "GPUs": planned(PHI, demo, "common_params.max_model_len=8192", *gpus),
    }  # fmt: skip
    found = {name: render_plan(plan).splitlines() for name, plan in plans.items()}
    assert all(len(line) <= 100 for lines in found.values() for line in lines)
    check_recorded("terminal-plan", found)
