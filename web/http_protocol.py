"""HTTP/1.1 as uvicorn speaks it, with bounds on what is no request yet.

A request must be complete within REQUEST_TIMEOUT_S, and a second more for each MIN_BYTES_PER_S of
it that have come (Apache's mod_reqtimeout counts like that): a slow line may send a large body, a
client that trickles may not hold a connection. The head is bounded in size. What is refused here
gets the error body of every tier.

It rides on what uvicorn does not promise: the `cycle` of the request being answered, the `flow` of
the connection, the parser's callbacks. tests/web/test_http_protocol.py says what of these it needs.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from web.errors import error_body

REQUEST_TIMEOUT_S = 10.0
MIN_BYTES_PER_S = 16 * 1024
MAX_HEAD_BYTES = 64 * 1024


class _HeadTooLarge(Exception):
    """Raised inside of the parser, which then gives the connection up."""


class HttpProtocol(HttpToolsProtocol):
    """One connection. Its clock runs from a request's first byte, or its own, to the last."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._clock: asyncio.TimerHandle | None = None
        self._began = 0.0
        self._received = 0
        self._in_head = self._head_is_too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._received += len(data)
        if self._in_head and self._received > MAX_HEAD_BYTES:
            self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._received = True, 0
        self._start_clock()

    def on_headers_complete(self) -> None:
        self._in_head = False
        lines = (len(name) + len(b": \r\n") + len(value) for name, value in self.headers)
        if len(self.url) + sum(lines) > MAX_HEAD_BYTES:
            self._head_is_too_large = True
            raise _HeadTooLarge
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_clock()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._head_is_too_large:
            self._refuse_head()
        else:
            self._refuse(400, msg, "invalid_http")

    def _refuse_head(self) -> None:
        message = f"path and headers are larger than {MAX_HEAD_BYTES} bytes"
        self._refuse(431, message, "headers_too_large")

    def _start_clock(self) -> None:
        self._stop_clock()
        self._began = self.loop.time()
        self._clock = self.loop.call_later(REQUEST_TIMEOUT_S, self._time_is_up)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _time_is_up(self) -> None:
        allowed = REQUEST_TIMEOUT_S + self._received / MIN_BYTES_PER_S
        left = self._began + allowed - self.loop.time()
        if self._is_answering or self.flow.read_paused:
            # Not the client is slow: the request before this one is being answered, or we do not
            # take what comes.
            left = REQUEST_TIMEOUT_S
        if left > 0.001:
            self._clock = self.loop.call_later(left, self._time_is_up)
            return
        message = f"the request was not complete within {REQUEST_TIMEOUT_S:g} s; send it at once"
        self._refuse(408, message, "request_timeout")

    @property
    def _is_answering(self) -> bool:
        """Whether a request that came whole is being answered."""
        return (
            self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        )

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer, unless that would fall into another answer, and close."""
        if self.transport.is_closing():
            return
        begun = (
            self.cycle is not None
            and self.cycle.response_started
            and not self.cycle.response_complete
        )
        if not begun and not self._is_answering:
            content = json.dumps(error_body(status, message, code=code)).encode()
            headers = (
                b"content-type: application/json\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n" % len(content)
            )
            self.transport.write(STATUS_LINE[status] + headers + content)
        self.transport.close()
