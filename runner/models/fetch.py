"""Files over HTTP, whole or not at all, through drops, kills and other processes that want them.

What has come of a file lies beside it under PARTIAL until it is whole, and whoever wants the file
next goes on there. One process fetches a file; others on the machine wait for it and then have it.
"""

from __future__ import annotations

import contextlib
import email.utils
import fcntl
import hashlib
import logging
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from contract.hub import is_transient
from runner.errors import ModelUnavailable, ModelUnreachable
from runner.models.progress import FetchProgress

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)

PARTIAL = ".partial"
# So few that the files that are read first come first, and that a kill leaves little undone.
FILES_AT_A_TIME = 4
CONNECT_TIMEOUT_S = 10.0
# A connection over which no byte comes for so long is given up; the next goes on where it ended.
SILENCE_S = 15.0
_LOOK_AGAIN_S = 0.2
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_HASH_STEP_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file: where it comes from, and where it goes.

    `size` is in bytes, None where nobody says. `digest` is "sha256:HEX", "git:HEX" (of git's blob)
    or ""; `version` an ETag that the content has as long as it is the same, or "".
    """

    name: str
    url: str
    target: Path
    lock: Path
    size: int | None = None
    digest: str = ""
    version: str = ""

    @property
    def partial(self) -> Path:
        return self.target.with_name(self.target.name + PARTIAL)

    def is_here(self) -> bool:
        try:
            found = self.target.stat().st_size
        except OSError:
            return False
        return self.size is None or found == self.size


class _TryAgain(Exception):
    """This attempt has failed; another one may not. `pause_s`: as the server asks."""

    def __init__(self, reason: str, pause_s: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class _Stopped(Exception):
    """Another file has failed for good."""


@dataclass(frozen=True)
class Fetcher:
    """Fetches files of one model. `model` is its name in messages.

    `headers` go with every request, not across a redirect to another host where they authorize.
    `refuse` makes the error of an answer that no further try will change. Without a byte of any
    file for `patience_s` seconds it is given up.
    """

    model: str
    headers: Mapping[str, str]
    refuse: Callable[[httpx2.Response], ModelUnavailable]
    progress: FetchProgress
    patience_s: float
    _stop: threading.Event = field(default_factory=threading.Event)

    def fetch(self, files: Sequence[RemoteFile]) -> None:
        """All of them are here afterwards; begun in this order, a few at a time.

        Raises ModelUnreachable where patience ended, ModelUnavailable for what is final.
        """
        self.progress.want({file.name: file.size for file in files})
        missing = [file for file in files if not self._found(file)]
        if not missing:
            return
        self._check_room(missing)
        with (
            self.progress.logged(self.model),
            http_client() as client,
            ThreadPoolExecutor(FILES_AT_A_TIME, "fetch") as pool,
        ):
            running = [pool.submit(self._one, client, file) for file in missing]
            try:
                for done in as_completed(running):
                    done.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _found(self, file: RemoteFile) -> bool:
        if not file.is_here():
            return False
        self.progress.reached(file.name, file.target.stat().st_size)
        return True

    def _check_room(self, files: Sequence[RemoteFile]) -> None:
        wanted = sum(max(0, (file.size or 0) - _size(file.partial)) for file in files)
        folder = next(path for path in files[0].target.parents if path.is_dir())
        free = shutil.disk_usage(folder).free
        if wanted > free:
            raise ModelUnavailable(
                f"model_name = {self.model!r}: {wanted:,} bytes are to be fetched and {folder} has "
                f"{free:,} free; give the model cache more room"
            )

    def _one(self, client: httpx2.Client, file: RemoteFile) -> None:
        try:
            file.lock.parent.mkdir(parents=True, exist_ok=True)
            file.target.parent.mkdir(parents=True, exist_ok=True)
            with self._alone(file):
                if not self._found(file):
                    self._persist(client, file)
        except OSError as error:
            where = file.target.parent
            raise ModelUnavailable(
                f"model_name = {self.model!r}: {file.name} cannot be written to {where}: "
                f"{error.strerror or error}"
            ) from error

    @contextlib.contextmanager
    def _alone(self, file: RemoteFile) -> Iterator[None]:
        """Held until left or killed. A file system without locks costs a second download only:
        both write the same bytes to the same places."""
        with file.lock.open("w") as held:
            while True:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self.progress.reached(file.name, _size(file.target) or _size(file.partial))
                    self._wait(_LOOK_AGAIN_S)
                    self._check_patience("another process fetches it and gets no byte")
                except OSError:
                    break
            yield

    def _persist(self, client: httpx2.Client, file: RemoteFile) -> None:
        pause_s, wrong = _FIRST_PAUSE_S, 0
        while True:
            before = _size(file.partial)
            self.progress.reached(file.name, before)
            try:
                self._stream(client, file)
                if self._is_whole(file):
                    _put_in_place(file)
                    return
                wrong += 1
                if wrong > 1:
                    raise ModelUnreachable(self._said(f"{file.name} came damaged twice"))
                failure = _TryAgain(f"{file.name} came damaged")
            except _TryAgain as error:
                failure = error
            if _size(file.partial) > before:
                pause_s = _FIRST_PAUSE_S
            self._check_patience(str(failure))
            logger.warning("fetching %s: %s; trying again", self.model, failure)
            self._wait(failure.pause_s or pause_s * random.uniform(0.75, 1.25))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _stream(self, client: httpx2.Client, file: RemoteFile) -> None:
        import httpx2

        here = _size(file.partial)
        if file.size is not None and here == file.size:
            return
        headers = {**self.headers, "Accept-Encoding": "identity"}
        if here:
            headers["Range"] = f"bytes={here}-"
            if file.version:
                headers["If-Range"] = file.version
        try:
            with client.stream("GET", file.url, headers=headers) as answer:
                self._write(file, answer, here)
        except (httpx2.TransportError, httpx2.StreamError) as error:
            raise _TryAgain(f"{file.name}: {str(error) or type(error).__name__}") from error
        if file.size is not None and _size(file.partial) < file.size:
            raise _TryAgain(f"{file.name}: the connection ended early")

    def _write(self, file: RemoteFile, answer: httpx2.Response, here: int) -> None:
        if answer.status_code == 416:  # it is shorter than what is here of it
            file.partial.unlink(missing_ok=True)
            raise _TryAgain(f"{file.name}: has changed at its source")
        if is_transient(answer.status_code):
            reason = f"{file.name}: answered with {answer.status_code}"
            raise _TryAgain(reason, _asked_pause(answer.headers.get("Retry-After", "")))
        if answer.status_code >= 400:
            raise self.refuse(answer)
        resumed = answer.status_code == 206
        place = here if resumed else 0
        if resumed and not answer.headers.get("Content-Range", "").startswith(f"bytes {here}-"):
            raise _TryAgain(f"{file.name}: another range came than was asked for")
        if resumed and answer.headers.get("ETag", file.version) != file.version and file.version:
            # Not every store heeds If-Range.
            file.partial.unlink(missing_ok=True)
            raise _TryAgain(f"{file.name}: has changed at its source")
        descriptor = os.open(file.partial, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not resumed:
                os.ftruncate(descriptor, 0)
            for some in answer.iter_raw():
                rest = memoryview(some)
                while rest:
                    written = os.pwrite(descriptor, rest, place)
                    place, rest = place + written, rest[written:]
                self.progress.reached(file.name, place)
                if self._stop.is_set():
                    raise _Stopped
        finally:
            os.close(descriptor)

    def _is_whole(self, file: RemoteFile) -> bool:
        if file.size in (None, _size(file.partial)) and _has_digest(file.partial, file.digest):
            return True
        file.partial.unlink(missing_ok=True)
        self.progress.reached(file.name, 0)
        return False

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _Stopped

    def _check_patience(self, reason: str) -> None:
        if self.progress.idle_s >= self.patience_s:
            raise ModelUnreachable(self._said(f"no byte for {self.patience_s:g} s: {reason}"))

    def _said(self, reason: str) -> str:
        return f"model_name = {self.model!r}: {reason}"


def http_client() -> httpx2.Client:
    """Follows redirects. Raises httpx2.HTTPError where a connection is silent for SILENCE_S."""
    import httpx2

    timeout = httpx2.Timeout(SILENCE_S, connect=CONNECT_TIMEOUT_S)
    return httpx2.Client(follow_redirects=True, timeout=timeout)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _put_in_place(file: RemoteFile) -> None:
    """On the disk before it has its name: a node that loses power must not leave a hollow file."""
    descriptor = os.open(file.partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    file.partial.replace(file.target)


def _has_digest(path: Path, digest: str) -> bool:
    kind, _, expected = digest.partition(":")
    if not expected:
        return True
    found = hashlib.sha256()
    if kind == "git":
        found = hashlib.sha1(usedforsecurity=False)
        found.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as content:
        while some := content.read(_HASH_STEP_BYTES):
            found.update(some)
    return found.hexdigest() == expected


def _asked_pause(retry_after: str) -> float:
    """Seconds of a Retry-After header, which has a number or a date; 0 for none."""
    if retry_after.isdecimal():
        asked = float(retry_after)
    else:
        try:
            asked = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return min(max(asked, 0.0), _LONGEST_PAUSE_S)
