"""How far the fetching of a model's files is, in bytes."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping

logger = logging.getLogger(__name__)

LOG_EACH_S = 10.0


class FetchProgress:
    """Bytes that are wanted and bytes that are here, over all files. From any thread.

    Of a file that another process of this machine fetches its bytes count too. A file whose size
    nobody tells counts as large as what has come of it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: dict[str, int | None] = {}
        self._here: dict[str, int] = {}
        self._moved = time.monotonic()

    @property
    def wanted_bytes(self) -> int:
        with self._lock:
            return sum(
                self._here.get(name, 0) if size is None else size
                for name, size in self._wanted.items()
            )

    @property
    def fetched_bytes(self) -> int:
        with self._lock:
            return sum(self._here.values())

    @property
    def idle_s(self) -> float:
        """Seconds since the last byte, or since files were asked for last."""
        with self._lock:
            return time.monotonic() - self._moved

    def want(self, sizes: Mapping[str, int | None]) -> None:
        """These files too; in bytes, None where not known."""
        with self._lock:
            self._wanted.update(sizes)
            self._moved = time.monotonic()

    def reached(self, name: str, size: int) -> None:
        """So many bytes of a file are here."""
        with self._lock:
            if self._here.get(name) != size:
                self._here[name] = size
                self._moved = time.monotonic()

    def __str__(self) -> str:
        fetched, wanted = self.fetched_bytes, self.wanted_bytes
        share = 100 * fetched // wanted if wanted else 100
        return f"{_megabytes(fetched)} of {_megabytes(wanted)} MB ({share}%)"

    @contextlib.contextmanager
    def logged(self, name: str) -> Iterator[None]:
        """Every LOG_EACH_S seconds a line about the model of that name, and one at the end."""
        ended = threading.Event()
        began, first = time.monotonic(), self.fetched_bytes
        logger.info("fetching %s: %s", name, self)

        def lines() -> None:
            before = first
            while not ended.wait(LOG_EACH_S):
                now = self.fetched_bytes
                speed = _megabytes((now - before) / LOG_EACH_S)
                idle = self.idle_s
                stalled = f", no byte for {idle:.0f} s" if idle >= LOG_EACH_S else ""
                logger.info("fetching %s: %s, %s MB/s%s", name, self, speed, stalled)
                before = now

        thread = threading.Thread(target=lines, name="fetch-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        # Not where an error comes through here.
        came = _megabytes(self.fetched_bytes - first)
        logger.info("fetched %s: %s MB in %.1f s", name, came, time.monotonic() - began)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f}" if size < 1e8 else f"{size / 1e6:,.0f}"
