from __future__ import annotations

import time

import pytest
from prometheus_client import CollectorRegistry

from proxy_block.active_sessions import ACTIVE_S, ActiveSessions


def test_a_session_counts_once_and_until_it_has_rested(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    active, registry = ActiveSessions(), CollectorRegistry()
    active.register(registry)
    for session_id in ("a", "b", "a"):
        active.note(session_id)
        now += 100
    assert registry.get_sample_value("llm_active_sessions") == 2
    now = ACTIVE_S + 150.0
    assert active.count() == 1
    now += ACTIVE_S
    assert active.count() == 0
