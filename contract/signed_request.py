"""A request that is signed whole: over time, nonce, method, path and body, and taken once.

    Authorization: Splitstack-HMAC-SHA256 time=1790000000.123, nonce=<32 hex>, signature=<64 hex>

For what a key alone is too little (a spec): who reads such a request in passing can neither change
it nor send it again. The key is contract.signature.signing_key.
"""

from __future__ import annotations

import hashlib
import heapq
import hmac
import re
from collections.abc import Callable

from contract.signature import same

SCHEME = "Splitstack-HMAC-SHA256"
TOLERANCE_S = 60.0
MOST_NONCES = 1024
NONCE_BYTES = 16
_HEADER = re.compile(
    rf"{SCHEME} time=(\d{{1,12}}\.\d{{3}}), nonce=([0-9a-f]{{{2 * NONCE_BYTES}}}), "
    r"signature=([0-9a-f]{64})",
    re.ASCII,
)


class SignatureRefused(ValueError):
    """A signature that does not count; the message is one sentence without anything secret."""


def sign(key: bytes, method: str, path: str, body: bytes, now: float, nonce: bytes) -> str:
    """The header's value. `path` as it is sent, with its query; `now` in seconds since 1970;
    `nonce` are NONCE_BYTES never used with this key before, as from secrets.token_bytes."""
    assert len(nonce) == NONCE_BYTES
    time, told = f"{now:.3f}", nonce.hex()
    code = _code(key, time, told, method, path, body)
    return f"{SCHEME} time={time}, nonce={told}, signature={code}"


class Verifier:
    """Takes each signed request once. `now` is the clock, in seconds since 1970.

    What was signed at or before `_floor` is refused. It begins with this process, which does not
    know what the one before it has taken; where the nonces are too many, the oldest goes and the
    floor rises to its time. So memory is bounded and nothing is ever taken twice, but for what was
    signed by a clock ahead of ours just before this process began.
    """

    def __init__(self, key: bytes, now: Callable[[], float]) -> None:
        self._key, self._now = key, now
        self._floor = now()
        self._taken: set[str] = set()
        self._by_time: list[tuple[float, str]] = []

    def take(self, header: str, method: str, path: str, body: bytes) -> None:
        """Raises SignatureRefused."""
        found = _HEADER.fullmatch(header)
        if found is None:
            raise SignatureRefused(f"must be `{SCHEME} time=..., nonce=..., signature=...`")
        time, nonce, signature = found.groups()
        # First of all, so that who has no key learns nothing and fills no memory.
        if not same(signature, _code(self._key, time, nonce, method, path, body)):
            raise SignatureRefused("the signature is not that of this request by the stack's key")
        signed_at = float(time)
        off_s = signed_at - self._now()
        if abs(off_s) > TOLERANCE_S:
            where = "ahead of" if off_s > 0 else "behind"
            raise SignatureRefused(
                f"was signed {abs(off_s):.0f} s {where} this clock, where {TOLERANCE_S:g} s are "
                "allowed: set the clocks, or sign anew"
            )
        if nonce in self._taken:
            raise SignatureRefused("was taken before: sign each request anew")
        if signed_at <= self._floor:
            raise SignatureRefused("was signed before what this process remembers: sign anew")
        self._remember(signed_at, nonce)

    def _remember(self, signed_at: float, nonce: str) -> None:
        self._taken.add(nonce)
        heapq.heappush(self._by_time, (signed_at, nonce))
        if len(self._by_time) > MOST_NONCES:
            self._floor, oldest = heapq.heappop(self._by_time)
            self._taken.remove(oldest)


def _code(key: bytes, time: str, nonce: str, method: str, path: str, body: bytes) -> str:
    """Fields of any length behind one another could be cut in another way: each is a hash."""
    fields = (SCHEME, time, nonce, method, path)
    digests = [hashlib.sha256(field.encode()).digest() for field in fields]
    digests.append(hashlib.sha256(body).digest())
    return hmac.new(key, b"".join(digests), hashlib.sha256).hexdigest()
