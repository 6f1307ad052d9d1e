"""The API keys: a file of hashes that is read again when it changes.

A JSON list of {"name", "sha256", "max_concurrent"?, "tokens_per_minute"?, "reads_all_logs"?}. The
hash is of the whole key, in hexadecimal: `printf %s "$KEY" | sha256sum`. Keys are random, so that
a slow hash would protect nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from pathlib import Path

from contract.api_keys import ApiKey, ApiKeysError, read_api_keys

CHECK_INTERVAL_S = 1.0
log = logging.getLogger(__name__)


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
    """Raises ApiKeysError, which names the file, the place in it and the rule."""
    where = f"--api-keys-file {path}: "
    try:
        return read_api_keys(path.read_bytes())
    except OSError as error:
        raise ApiKeysError([f"cannot be read: {error.strerror}"], where) from error
    except ApiKeysError as error:
        raise ApiKeysError(error.faults, where) from None
