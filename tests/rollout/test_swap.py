from __future__ import annotations

from typing import Any

import pytest

from rollout.swap import RankProgress


@pytest.mark.parametrize(
    ("state", "more", "line"),
    [
        ("waiting", {}, "rank 1 waiting"),
        ("fetching", {}, "rank 1 fetching"),
        ("fetching", {"fetched_bytes": 300, "wanted_bytes": 1200}, "rank 1 fetching 0.3 of 1.2 kB"),
        (
            "waiting",
            {"fetched_bytes": 300, "wanted_bytes": 1200},
            "rank 1 waiting for what is in force first, 0.3 of 1.2 kB",
        ),
        ("prepared", {"fetched_bytes": 9, "wanted_bytes": 9}, "rank 1 prepared"),
    ],
)
def test_how_far_a_rank_is(state: str, more: dict[str, Any], line: str) -> None:
    assert RankProgress(rank=1, state=state, **more).line == line
