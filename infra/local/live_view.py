"""A text in the terminal that is written again in place."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.live import Live
from rich.text import Text

INTERVAL_S = 1.0


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
