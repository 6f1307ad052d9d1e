"""What httpx does in the tests' own processes where a test says nothing about it."""

from __future__ import annotations

import functools
import inspect
import ssl
from typing import Any

import certifi
import httpx

from tests.waiting import PATIENCE_S

_make_context = ssl.create_default_context


def set_http_defaults() -> None:
    """Answers may take their time, and one TLS context serves every client.

    httpx's 5 s are soon over on a machine that runs other tests too. It makes a context for each
    client and a client for each httpx.get(): 25 ms of processor time, thousands of times.
    """
    limits = inspect.signature(httpx.get).parameters["timeout"].default
    limits.connect = limits.read = limits.write = limits.pool = PATIENCE_S
    ssl.create_default_context = _context  # type: ignore[assignment]


def _context(*arguments: Any, **named: Any) -> ssl.SSLContext:
    if not arguments and named == {"cafile": certifi.where()}:
        return _usual_context()
    return _make_context(*arguments, **named)


@functools.cache
def _usual_context() -> ssl.SSLContext:
    return _make_context(cafile=certifi.where())
