"""API keys of the inference server: making one, and where the local stack finds them."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Any

from infra.stack.faults import UserError

# On clusters they are the secret key splitstack:api_keys of the stack file.
FILE_VARIABLE = "SPLITSTACK_API_KEYS_FILE"
KEY_PREFIX = "sk-"


def make_api_key(
    name: str, max_concurrent: int | None = None, tokens_per_minute: int | None = None
) -> tuple[str, dict[str, Any]]:
    """A new key, which is nowhere kept, and its entry for the list of keys, which has its hash."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    entry: dict[str, Any] = {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()}
    if max_concurrent is not None:
        entry["max_concurrent"] = max_concurrent
    if tokens_per_minute is not None:
        entry["tokens_per_minute"] = tokens_per_minute
    return key, entry


def local_api_keys_file() -> Path | None:
    """The file that FILE_VARIABLE names, None where it is not set; raises UserError."""
    given = os.environ.get(FILE_VARIABLE, "")
    if not given:
        return None
    path = Path(given).absolute()
    if not path.is_file():
        raise UserError(
            f"{FILE_VARIABLE} = {given}: is no file; `splitstack api-key NAME` makes an entry for "
            "it, and without the variable everybody on this machine may ask"
        )
    return path
