"""What another tier said of itself, asked again when it is old."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")
# An edit of the stack may put another model behind the same address.
MAX_AGE_S = 5.0
AGAIN_S = 1.0  # after a failure


class Remembered(Generic[Value]):
    """`ask` gives None where it fails; what it gave before is then as good as ever."""

    def __init__(self, ask: Callable[[], Awaitable[Value | None]]) -> None:
        self._ask = ask
        self._value: Value | None = None
        self._ask_at = -math.inf

    async def get(self) -> Value | None:
        """None when it was never told."""
        now = time.monotonic()
        if now >= self._ask_at:
            if self._value is not None:
                self._ask_at = now + MAX_AGE_S  # meanwhile the others take what there is
            value = await self._ask()
            self._ask_at = time.monotonic() + (AGAIN_S if value is None else MAX_AGE_S)
            self._value = self._value if value is None else value
        return self._value

    def doubt(self) -> None:
        """Ask at the next use."""
        self._ask_at = -math.inf
