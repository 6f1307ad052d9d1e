"""How long the kubelet will wait before it starts a crashed container again.

It says only how long it waits in all, as in "back-off 1m20s restarting failed container=stage ...",
and counts from the end of the last run.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any

_REASON = "CrashLoopBackOff"
# As Go writes a duration of whole seconds.
_MESSAGE = re.compile(r"back-off (?:(\d+)h)?(?:(\d+)m)?(\d+)s restarting failed container")


def told_back_off(status: Any, now: datetime | None = None) -> str:
    """Of a V1ContainerStatus, in words; "" where its container is not waiting for that.

    `now` has a time zone. Clocks here and there may differ by some seconds, and so does the answer.
    """
    waiting = status.state.waiting if status.state else None
    if waiting is None or waiting.reason != _REASON:
        return ""
    found = _MESSAGE.search(waiting.message or "")
    if found is None:
        return "the kubelet waits before it starts it again"
    hours, minutes, seconds = (int(number or 0) for number in found.groups())
    whole_s = hours * 3600 + minutes * 60 + seconds
    left_s = _left_s(status, whole_s, now or datetime.now(UTC))
    if left_s is None:
        return f"the kubelet waits {whole_s} s before it starts it again"
    if left_s <= 0:
        return f"the kubelet has waited its {whole_s} s and is to start it again any moment"
    return f"the kubelet starts it again in {left_s} s, {whole_s} s after it ended"


def _left_s(status: Any, whole_s: int, now: datetime) -> int | None:
    """None where nothing says when it ended."""
    ended = status.last_state.terminated if status.last_state else None
    if ended is None or ended.finished_at is None:
        return None
    gone: timedelta = now - ended.finished_at
    return math.ceil(whole_s - max(0.0, gone.total_seconds()))
