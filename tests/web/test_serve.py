"""How a process ends while it has requests: what is not finished is broken off, never answered."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from infra.local.process import die_with_parent
from tests.waiting import free_ports, wait_for

# Answers "ready" at once; of "/begun" the beginning, of others nothing.
_SERVED = """
import asyncio, sys
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from web.serve import serve

async def ready(request):
    return PlainTextResponse(str(len(asked)))

async def hang(request):
    asked.append(request)
    async def body():
        yield b"begun"
        await asyncio.sleep(600)
    if request.url.path == "/begun":
        return StreamingResponse(body())
    await asyncio.sleep(600)

asked = []
app = Starlette(routes=[Route("/livez", ready), Route("/{path}", hang)])
sys.exit(serve(app, "127.0.0.1", int(sys.argv[1]), drain_s=lambda: float(sys.argv[2])))
"""


@contextmanager
def served(drain_s: float) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    [port] = free_ports(1)
    command = [sys.executable, "-c", _SERVED, str(port), str(drain_s)]
    process = subprocess.Popen(command, preexec_fn=die_with_parent())
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: asked(url) == 0)
    try:
        yield process, url
    finally:
        process.kill()
        process.wait()


def asked(url: str) -> int | None:
    try:
        return int(httpx.get(f"{url}/livez").text)
    except httpx.HTTPError:
        return None


@pytest.mark.parametrize("signals", [1, 2])
def test_what_is_not_finished_is_broken_off(signals: int) -> None:
    drain_s = 0.3 if signals == 1 else 600
    with served(drain_s) as (process, url), ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(httpx.get, url + path, timeout=60) for path in ("/x", "/begun")]
        wait_for(lambda: asked(url) == 2)
        process.send_signal(signal.SIGTERM)
        if signals == 2:
            wait_for(lambda: httpx.get(f"{url}/y").status_code == 503)
            process.send_signal(signal.SIGTERM)
        for answer in answers:
            assert isinstance(answer.exception(), httpx.TransportError)
        assert process.wait(60) == 0
