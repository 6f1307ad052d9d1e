"""How many sessions are being talked in: the gauge llm_active_sessions of AIOS's LLMMetrics."""

from __future__ import annotations

import time
from collections import OrderedDict

from prometheus_client import CollectorRegistry, Gauge

ACTIVE_S = 600


class ActiveSessions:
    """Sessions with a request to this replica in the last ACTIVE_S seconds."""

    def __init__(self) -> None:
        self._used_at: OrderedDict[str, float] = OrderedDict()

    def note(self, session_id: str) -> None:
        self._used_at[session_id] = time.monotonic()
        self._used_at.move_to_end(session_id)
        self._forget()

    def count(self) -> int:
        self._forget()
        return len(self._used_at)

    def register(self, registry: CollectorRegistry) -> None:
        text = f"Sessions with a request in the last {ACTIVE_S} seconds"
        Gauge("llm_active_sessions", text, registry=registry).set_function(self.count)

    def _forget(self) -> None:
        oldest = time.monotonic() - ACTIVE_S
        while self._used_at and next(iter(self._used_at.values())) < oldest:
            self._used_at.popitem(last=False)
