"""Bodies that no client means, and a process that sends them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from typing import Any

import httpx

MILLION, MEGABYTE = 1_000_000, 1_000_000
# Between two bodies: one client that comes again and again, not a flood, which keys limit.
PAUSE_S = 0.2


def bodies(model: str) -> Iterator[tuple[str, bytes]]:
    """By kind; those of 4 MB are as large as the inference server takes."""
    start = b'{"model": "%s", "messages": ' % model.encode()
    user = b'[{"role": "user", "content": "%s"}]}'
    yield "10 MB of text", start + user % (b"word " * (2 * MEGABYTE))
    yield "4 MB of text", start + user % (b"word " * (4 * MEGABYTE // 5))
    yield "4 MB of escapes", start + user % (b"\\u00e9" * (4 * MEGABYTE // 6))
    yield "a million messages", start + b"[%s 1]}" % (b"{}, " * MILLION)
    yield "lone surrogates", start + user % (b"\\ud800" * (4 * MEGABYTE // 6))
    number = b'"seed": %d, "max_tokens": %d' % (2**70, 10**60)
    yield "numbers beyond 64 bits", start + user[:-1] % b"x" + b", " + number + b"}"
    yield "a number of 4 MB", start + user[:-1] % b"x" + b', "n": ' + b"9" * 4 * MEGABYTE + b"}"
    yield "deep lists", start + b"[" * (4 * MEGABYTE)
    yield "deep objects", start + b'{"a": ' * (100_000)
    keys = b", ".join(b'"%x": 1' % place for place in range(250_000))
    yield "250,000 keys", start + user[:-1] % b"x" + b", " + keys + b"}"
    keys = b",".join(b'"%x":1' % place for place in range(MILLION))
    yield "a million keys", b"{" + keys + b"}"
    yield "not closed", start + user[:-2] % (b"word " * (4 * MEGABYTE // 5))


def send_bodies(urls: dict[str, str], begin: Event, end: Event, told: Any) -> None:
    """A process: when told to `begin`, all kinds over and over; statuses and slowest answers."""
    kept = [(url, kind, body) for url, model in urls.items() for kind, body in bodies(model)]
    headers, found = {"Content-Type": "application/json"}, dict[str, list[float]]()
    with httpx.Client(timeout=120, headers=headers) as client:
        while not end.is_set():
            for url, kind, body in kept:
                begin.wait()
                if end.is_set():
                    break
                start = time.perf_counter()
                try:
                    answer = client.post(f"{url}/v1/chat/completions", content=body)
                    status = str(answer.status_code)
                except httpx.HTTPError as error:  # a 413 closes what still sends
                    status = type(error).__name__
                found.setdefault(f"{kind}: {status}", []).append(time.perf_counter() - start)
                time.sleep(PAUSE_S)
    slowest = {kind: (len(times), round(max(times) * 1e3)) for kind, times in found.items()}
    told.put(slowest)
