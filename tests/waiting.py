"""Polling with a deadline, and free ports, for tests of real processes."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any


def wait_for(condition: Callable[[], Any], limit_s: float = 15.0, what: str = "") -> Any:
    """The first true value of `condition`; AssertionError when there is none in `limit_s`."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what or condition}: not within {limit_s} s")


def free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago, all different."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
