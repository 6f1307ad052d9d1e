"""What one key uses: requests at a time, and tokens per minute. In this process only."""

from __future__ import annotations

import math
import time

from contract.api_keys import ApiKey
from web.errors import ApiError

MINUTE_S = 60.0


class KeyUse:
    """A token bucket that holds a minute's tokens and is charged when they are known, so that a
    request may overdraw it; the next one then waits until it is refilled."""

    def __init__(self) -> None:
        self._running = 0
        self._spent = 0.0
        self._spent_at = time.monotonic()

    def take(self, key: ApiKey) -> None:
        """A place for one request, to be released at its end. Raises ApiError 429."""
        if key.max_concurrent is not None and self._running >= key.max_concurrent:
            rule = f"key {key.name} has {self._running} requests running, all that it may"
            raise _too_many(f"{rule} (max_concurrent)", "concurrency_limit_exceeded", 1)
        if key.tokens_per_minute is None:
            # Nothing is owed should the key be given a limit later.
            self._spent, self._spent_at = 0.0, time.monotonic()
        else:
            self._refill(key.tokens_per_minute)
            if self._spent >= key.tokens_per_minute:
                over = self._spent - key.tokens_per_minute + 1
                wait_s = math.ceil(over * MINUTE_S / key.tokens_per_minute)
                rule = f"key {key.name} has used its {key.tokens_per_minute} tokens per minute"
                raise _too_many(rule, "token_rate_limit_exceeded", wait_s)
        self._running += 1

    def release(self) -> None:
        self._running -= 1

    def charge(self, tokens: int) -> None:
        self._spent += tokens

    def _refill(self, tokens_per_minute: int) -> None:
        now = time.monotonic()
        back = (now - self._spent_at) * tokens_per_minute / MINUTE_S
        self._spent, self._spent_at = max(0.0, self._spent - back), now


def _too_many(message: str, code: str, wait_s: int) -> ApiError:
    return ApiError(429, message, code=code, headers={"Retry-After": str(wait_s)})
