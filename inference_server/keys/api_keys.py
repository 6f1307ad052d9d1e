"""The API keys: a file of hashes that is read again when it changes.

A JSON list of {"name", "sha256", "max_concurrent"?, "tokens_per_minute"?, "reads_all_logs"?}. The
hash is of the whole key, in hexadecimal: `printf %s "$KEY" | sha256sum`. Keys are random, so that
a slow hash would protect nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from web.fields import Fields

CHECK_INTERVAL_S = 1.0
log = logging.getLogger(__name__)


class ApiKey(Fields):
    """Who asks, and what they may; None: no limit of that kind."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    reads_all_logs: bool = False


_KEYS = TypeAdapter(list[ApiKey])


class ApiKeysError(ValueError):
    """The file cannot be used; the message names it, the place in it and the rule."""


class ApiKeys:
    """The keys in force. A file that is broken later leaves the last good keys in force."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises ApiKeysError."""
        self._path = Path(path)
        self._seen = self._state()
        self._keys = _read(self._path)
        self._checked_at = time.monotonic()

    def find(self, key: str) -> ApiKey | None:
        """The entry of a key. Every hash is compared, each in constant time."""
        self._read_again()
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        for entry in self._keys:
            if hmac.compare_digest(entry.sha256, digest):
                found = entry
        return found

    def _read_again(self) -> None:
        now = time.monotonic()
        if now - self._checked_at < CHECK_INTERVAL_S:
            return
        self._checked_at = now
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        try:
            self._keys = _read(self._path)
        except ApiKeysError as error:
            log.error("API keys not read again, the former ones stay: %s", error)
        else:
            names = [entry.name for entry in self._keys]
            log.info("API keys read again", extra={"fields": {"names": names}})

    def _state(self) -> tuple[int, int, int] | None:
        """What changes with the file; a mounted Secret changes through its symbolic links."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size


def _read(path: Path) -> list[ApiKey]:
    where = f"--api-keys-file {path}"
    try:
        document: Any = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ApiKeysError(f"{where}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ApiKeysError(f"{where}: is not JSON: {error}") from error
    try:
        keys = _KEYS.validate_python(document)
    except ValidationError as error:
        # Without the input: somebody may have put a key where its hash belongs.
        faults = [
            ".".join(map(str, fault["loc"])) + f": {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False)
        ]
        raise ApiKeysError(f"{where}: {'; '.join(faults[:5])}") from None
    for name in ("name", "sha256"):
        values = [getattr(entry, name) for entry in keys]
        if len(set(values)) != len(values):
            raise ApiKeysError(f"{where}: {name}: two keys have the same")
    return keys
