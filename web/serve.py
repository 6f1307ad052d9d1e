"""Serving HTTP until SIGTERM, and leaving without dropping anybody.

On SIGTERM or SIGINT /readyz turns false at once and new work is refused with 503, while the
socket stays open; requests in flight finish, for at most `drain_s`; then `on_drain` runs and the
process ends with 0. A second signal ends it at once. What is not finished then is broken off, as if
the process were killed: an answer to it, which is never the right one, would be the last, where
whoever asked could go on elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from web.deadline import DeadlineMiddleware
from web.errors import error_response
from web.http_protocol import HttpProtocol
from web.listener import PortError, bind
from web.middleware import AccessLog
from web.request_id import RequestIdMiddleware

EXIT_CLEAN = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
# Idle connections outlive the pools of the tiers in front, so that none is closed in their hands.
KEEP_ALIVE_S = 75
# After the drain, what is left open (a stream past drain_s) has this long to notice.
CLOSE_S = 2
READINESS = ("/readyz", "/health")
# Event streams without an end are not waited for either.
ALWAYS_SERVED = frozenset({"/livez", "/metrics", "/topology", "/topology/events", "/v1/events"})
log = logging.getLogger("web.serve")

OnDrain = Callable[[], Awaitable[None]]


class Drain:
    """ASGI wrapper that counts the requests in flight and refuses new ones while draining."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ALWAYS_SERVED:
            await self._app(scope, receive, send)
            return
        if self.draining:
            headers = {"Retry-After": "1", "Connection": "close"}
            refusal = error_response(
                503, "this process is draining and ends soon", code="draining", headers=headers
            )
            await refusal(scope, receive, send)
            return
        self._in_flight += 1
        self._idle.clear()
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def run(self, drain_s: float) -> bool:
        """Refuse new work and wait for what is in flight, `drain_s` seconds at most; whether all of
        it was finished."""
        self.draining = True
        log.info("draining", extra={"fields": {"in_flight": self._in_flight}})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), drain_s)
        return self._idle.is_set()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are handled by `_serve`: uvicorn's own way closes the socket first."""
        yield

    def break_off(self) -> None:
        """Every connection, at once."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def serve(
    app: ASGIApp,
    host: str,
    port: int,
    drain_s: Callable[[], float],
    on_drain: OnDrain | None = None,
    on_signal: Callable[[], None] | None = None,
) -> int:
    """Serve `app` until SIGTERM; `on_signal` runs when the drain begins, `on_drain` at its end.
    `drain_s` is asked when it begins.

    Returns the exit code: 0 after a drain, 1 when the lifespan's startup failed (its error is
    logged), 2 when the port cannot be had.
    """
    try:
        listener = bind(host, port)
    except PortError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSE_S,
    )
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        return runner.run(_serve(config, listener, drain_s, on_drain, on_signal))


async def _serve(
    config: uvicorn.Config,
    listener: socket.socket,
    drain_s: Callable[[], float],
    on_drain: OnDrain | None,
    on_signal: Callable[[], None] | None,
) -> int:
    drain = Drain(config.app)  # type: ignore[arg-type]
    config.app = RequestIdMiddleware(
        AccessLog(DeadlineMiddleware(drain), {*ALWAYS_SERVED, *READINESS})
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    ending: list[asyncio.Task[None]] = []

    async def end() -> None:
        if not await drain.run(drain_s()):
            log.warning("what is not finished is broken off")
            server.break_off()
        if on_drain is not None:
            await on_drain()
        server.should_exit = True

    def signalled() -> None:
        if ending:
            server.break_off()
            server.should_exit = server.force_exit = True
        else:
            if on_signal is not None:
                on_signal()
            ending.append(loop.create_task(end()))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    host, port = listener.getsockname()[:2]
    log.info("listening", extra={"fields": {"address": host, "port": port}})
    await server.serve(sockets=[listener])
    if ending and not server.force_exit:
        await ending[0]
    return EXIT_CLEAN if server.started else EXIT_FAILED
