"""API keys of the inference server: making one, and where the local stack finds them."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from infra.stack.local_error import LocalStackError

# On clusters they are the secret key splitstack:api_keys of the stack file.
FILE_VARIABLE = "SPLITSTACK_API_KEYS_FILE"
KEY_PREFIX = "sk-"


class ApiKeyEntry(BaseModel):
    """One entry by the inference server's rules (inference_server/keys/api_keys.py); a test holds
    the two together."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, Field(min_length=1, max_length=64)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    reads_all_logs: bool = False


_ENTRIES = TypeAdapter(list[ApiKeyEntry])


def wrong_entries(text: str) -> list[str]:
    """What the inference server would refuse in a list of keys, never with a value of it.

    It goes on with the keys before, those taken away among them, and at its start it ends.
    """
    try:
        entries = _ENTRIES.validate_json(text)
    except ValidationError as error:
        return [
            "".join(f"[{item}]" if isinstance(item, int) else f".{item}" for item in fault["loc"])
            + f" {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False, include_context=False)
        ]
    found = []
    for field in ("name", "sha256"):
        values = [getattr(entry, field) for entry in entries]
        if len(set(values)) < len(values):
            found.append(f" two entries have the same {field}")
    return found


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
    """The file that FILE_VARIABLE names, None where it is not set; raises LocalStackError."""
    given = os.environ.get(FILE_VARIABLE, "")
    if not given:
        return None
    path = Path(given).absolute()
    if not path.is_file():
        raise LocalStackError(
            f"{FILE_VARIABLE} = {given}: is no file; `splitstack api-key NAME` makes an entry for "
            "it, and without the variable everybody on this machine may ask"
        )
    return path
