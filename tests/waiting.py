"""Polling with patience, and free ports, for tests of real processes."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

# Below what Linux gives out by itself (32768 and up), so that between the choice of a port and its
# use no connection and no other port 0 gets it.
_FIRST_PORT, _LAST_PORT = 10_000, 29_999
_WORKERS = 16
# For what another process or thread does. It costs nothing where that is done, and a machine that
# runs other tests too may be busy for seconds.
PATIENCE_S = 60.0


def wait_for(condition: Callable[[], Any], limit_s: float = PATIENCE_S, what: str = "") -> Any:
    """The first true value of `condition`; AssertionError when there is none in `limit_s`."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what or condition}: not within {limit_s} s")


def free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago, all different, and never another worker's."""
    found: list[int] = []
    while len(found) < count:
        port = next(_ports)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
    return found


def _own_ports() -> Iterator[int]:
    """This pytest-xdist worker's, again and again; a run beside this one starts elsewhere."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    size = (_LAST_PORT + 1 - _FIRST_PORT) // _WORKERS
    first = _FIRST_PORT + worker * size
    start = os.getpid() * 37 % size
    return itertools.cycle([*range(first + start, first + size), *range(first, first + start)])


_ports = _own_ports()
