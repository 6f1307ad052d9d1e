"""A client that asks and ends its connection before the answer is whole."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from tests.waiting import wait_for


def ask_and_leave(
    url: str,
    body: Any,
    when: Callable[[], object],
    headers: Mapping[str, str] | None = None,
) -> None:
    """POST, read nothing, and leave once `when()` is true: that what was asked has arrived, say."""
    request = httpx.Request("POST", url, json=body, headers=headers)
    lines = [f"POST {request.url.path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    head = "\r\n".join([*lines, "", ""]).encode()
    with socket.create_connection((request.url.host, request.url.port or 80)) as connection:
        connection.sendall(head + request.read())
        wait_for(when, what="the time to leave")
