from __future__ import annotations

import time

import pytest

from runner.master.metrics import TokenSpeed


def test_speed_is_that_of_the_last_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    speed = TokenSpeed()
    for second in range(20):
        for _ in range(30):
            speed.add(100.0 + second)
    now = 120.5
    assert speed.per_second() == 30
    now = 125.5
    assert speed.per_second() == 15
    now = 140.0
    assert speed.per_second() == 0
