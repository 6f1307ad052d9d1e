"""What a key may use at a time and per minute."""

from __future__ import annotations

from typing import Any

import pytest

from contract.api_keys import ApiKey
from inference_server.keys import limits as key_limits
from inference_server.keys.limits import KeyUse
from web.errors import ApiError


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(key_limits, "time", clock)
    return clock


def key(**limits: Any) -> ApiKey:
    return ApiKey(name="ann", sha256="0" * 64, **limits)


def refused(use: KeyUse, of: ApiKey) -> ApiError:
    with pytest.raises(ApiError) as error:
        use.take(of)
    assert error.value.status == 429
    return error.value


def test_requests_at_a_time() -> None:
    use = KeyUse()
    use.take(key(max_concurrent=2))
    use.take(key(max_concurrent=2))
    error = refused(use, key(max_concurrent=2))
    assert error.body["error"]["code"] == "concurrency_limit_exceeded"
    assert error.headers == {"Retry-After": "1"}
    use.release()
    use.take(key(max_concurrent=2))


def test_tokens_come_back_with_time(clock: Clock) -> None:
    use, ann = KeyUse(), key(tokens_per_minute=600)
    use.take(ann)
    use.charge(599)
    use.take(ann)
    use.charge(301)
    error = refused(use, ann)
    assert error.body["error"]["code"] == "token_rate_limit_exceeded"
    wait_s = int((error.headers or {})["Retry-After"])
    assert wait_s == 31
    clock.now += wait_s - 2
    refused(use, ann)
    clock.now += 2
    use.take(ann)


def test_what_was_not_used_does_not_pile_up(clock: Clock) -> None:
    use, ann = KeyUse(), key(tokens_per_minute=60)
    clock.now += 86_400
    use.take(ann)
    use.charge(60)
    refused(use, ann)


def test_a_key_that_is_given_a_limit_owes_nothing_from_before(clock: Clock) -> None:
    use = KeyUse()
    for _ in range(3):
        use.take(key())
        use.charge(10**6)
    use.take(key())
    use.take(key(tokens_per_minute=600))


def test_without_limits_nothing_is_refused(clock: Clock) -> None:
    use = KeyUse()
    for _ in range(1000):
        use.take(key())
        use.charge(10**9)
