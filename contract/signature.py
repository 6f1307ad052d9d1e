"""How a caller of a verb that changes something proves that it is of the stack.

The group's token never travels. What does is made of it, one way, for one use each: from one of
these neither the token nor another one is to be had.

management  a key that a person presents: `Authorization: Bearer KEY`
signing     what whole requests are signed with (signed_request); it never travels either
rollout     the API key with which an edit is proved; the inference server knows its hash
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

MANAGEMENT_OUTPUT: Final = "management_key"
"""The stack's output that has the key, and the name of the file that has it in a pod."""
_MANAGEMENT = b"splitstack management key 1"
_SIGNING = b"splitstack signing key 1"
_ROLLOUT = b"splitstack rollout key 1"
ROLLOUT_KEY_NAME: Final = "splitstack-rollout"
"""The name of its entry in the list of API keys."""


def management_key(token: bytes) -> str:
    """64 hexadecimal digits; `token` as read_token gives it."""
    return _derived(token, _MANAGEMENT).hex()


def signing_key(token: bytes) -> bytes:
    """32 bytes; `token` as read_token gives it. Not the management key: that one can be read on a
    network which does not encrypt."""
    return _derived(token, _SIGNING)


def rollout_key(token: bytes) -> str:
    """64 hexadecimal digits; `token` as read_token gives it."""
    return _derived(token, _ROLLOUT).hex()


def same(given: str, expected: str) -> bool:
    """Whether both are equal, in a time that does not tell how far they are."""
    return hmac.compare_digest(given.encode(), expected.encode())


def _derived(token: bytes, label: bytes) -> bytes:
    """A key for one use: HKDF's expansion (RFC 5869, one block) with the token as its key."""
    return hmac.digest(token, label + b"\x01", hashlib.sha256)
