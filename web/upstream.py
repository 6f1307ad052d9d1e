"""The tier behind this one, asked over HTTP, each request once; web.carry asks again."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import time
from collections.abc import Mapping
from typing import Any

import httpx

from web import deadline as request_deadline
from web import domain as request_domain
from web.answer import Answer, UpstreamError
from web.errors import ApiError
from web.events import ADMITTED, Events, whole_events
from web.request_id import HEADER, current_request_id

CONNECT_TIMEOUT_S = 5.0
READY_TIMEOUT_S = 2.0
READY_POLL_S = 0.25
# Shorter than the server's keep-alive, so that a pooled connection is never closed in our hands.
POOL_EXPIRY_S = 30.0
# A stream without an end says something at least this often, or it is given up.
SILENCE_LIMIT_S = 10.0
# A host that is gone sends no reset: what acknowledges nothing for so long is given up.
LOST_AFTER_S = 20
_SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, LOST_AFTER_S // 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, LOST_AFTER_S // 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_AFTER_S * 1000),
)
EVENT_STREAM = "text/event-stream"
_PASSED_ON = ("content-type", "retry-after", "cache-control")


class Upstream:
    """`name` is what errors call it; a request may take `deadline_s`."""

    def __init__(self, name: str, url: str, *, deadline_s: float) -> None:
        self.name, self.url, self.deadline_s = name, url, deadline_s
        self._reason = ""
        self._asked_at = -math.inf
        self._asking: asyncio.Task[str] | None = None
        self._connections = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            transport=httpx.AsyncHTTPTransport(
                limits=httpx.Limits(max_keepalive_connections=64, keepalive_expiry=POOL_EXPIRY_S),
                socket_options=_SOCKET_OPTIONS,
                trust_env=False,
            ),
            headers={"Accept-Encoding": "identity"},
            trust_env=False,
        )

    async def close(self) -> None:
        """Whoever still asks, or asks again, is told that it cannot be reached."""
        await self._connections.aclose()
        if self._asking is not None:
            await self._asking  # ends with its connection; others may wait for it too

    @property
    def who(self) -> str:
        return f"{self.name} at {self.url}"

    @property
    def _client(self) -> httpx.AsyncClient:
        if self._connections.is_closed:
            raise httpx.ConnectError("it is no longer one of the addresses")
        return self._connections

    async def ready(self, max_age_s: float = 0.0) -> str:
        """Why it does not serve, in one sentence; "" when it does.

        An answer of up to `max_age_s` ago will do.
        """
        if time.monotonic() - self._asked_at < max_age_s:
            return self._reason
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_readiness())
        # Whoever else waits for the same answer is not cancelled with this one.
        return await asyncio.shield(self._asking)

    async def _ask_readiness(self) -> str:
        try:
            self._reason = await self._readiness()
            self._asked_at = time.monotonic()
            return self._reason
        finally:
            self._asking = None

    async def _readiness(self) -> str:
        try:
            answer = await self._client.get("/readyz", timeout=READY_TIMEOUT_S)
        except httpx.HTTPError as error:
            return f"{self.who} does not answer: {_reason(error)}"
        if answer.is_success:
            return ""
        try:
            reason = str(answer.json()["reason"])
        except (ValueError, KeyError, TypeError):
            reason = f"HTTP {answer.status_code}"
        return f"{self.name} is not ready: {reason}"

    async def get(self, path: str) -> dict[str, Any]:
        """A JSON object by GET; raises ApiError: 404 where there is none, 502 and 503."""
        try:
            answer = await self._client.get(path, timeout=READY_TIMEOUT_S)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if not answer.is_success:
            status = 404 if answer.status_code == httpx.codes.NOT_FOUND else 502
            raise ApiError(status, f"{self.name} answered {path} with HTTP {answer.status_code}")
        return _whole(answer, answer.content).document()

    async def live_events(self, path: str) -> Events:
        """Whole events of a stream without end, by GET; raises ApiError when it cannot be had.

        The first item is ADMITTED. Ends when it breaks off or falls silent.
        """
        timeout = httpx.Timeout(SILENCE_LIMIT_S, connect=CONNECT_TIMEOUT_S)
        begun = False
        try:
            async with self._client.stream("GET", path, timeout=timeout) as response:
                if not response.is_success:
                    message = f"{self.name} answered {path} with HTTP {response.status_code}"
                    raise ApiError(502, message)
                yield ADMITTED
                async for events in whole_events(response.aiter_raw()):
                    begun = True
                    yield events
        except httpx.HTTPError as error:
            if not begun:
                raise self._unreachable(error) from error

    async def ask(
        self, path: str, document: dict[str, Any], headers: Mapping[str, str], deadline: float
    ) -> Answer:
        """POST `document`, once. The upstream's own errors are an Answer with their status.

        `deadline` is in the event loop's time; the upstream is told, whoever asks keeps it. Raises
        UpstreamError (502 and 503), as the answer's events do; the first of those is ADMITTED.
        """
        left = deadline - asyncio.get_running_loop().time()
        # Compact: what was within a limit at this tier is within the same one at the next.
        content = json.dumps(
            document, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()
        sent = {
            "Content-Type": "application/json",
            HEADER: current_request_id() or "",
            request_domain.HEADER: request_domain.current_domain(),
            request_deadline.HEADER: f"{max(left, 0.001):.3f}",
            **headers,
        }
        try:
            request = self._client.build_request("POST", path, content=content, headers=sent)
            response = await self._client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise self._unreachable(error) from error
        except httpx.HTTPError as error:
            raise self._broke_off(error) from error
        if response.headers.get("content-type", "").startswith(EVENT_STREAM):
            events = self._events(response)
            return Answer(
                response.status_code, _headers(response), events=events, close=response.aclose
            )
        try:
            return _whole(response, await response.aread())
        except httpx.HTTPError as error:
            raise self._broke_off(error) from error
        finally:
            await response.aclose()

    async def returned(self) -> None:
        """Ends as soon as it serves."""
        while True:
            if not await self.ready(READY_POLL_S):
                return
            await asyncio.sleep(READY_POLL_S)

    async def _events(self, response: httpx.Response) -> Events:
        yield ADMITTED
        try:
            async for events in whole_events(response.aiter_raw()):
                yield events
        except httpx.HTTPError as error:
            raise self._broke_off(error) from error

    def _unreachable(self, error: httpx.HTTPError) -> UpstreamError:
        message = f"{self.who} cannot be reached: {_reason(error)}"
        return UpstreamError(
            503, message, code="upstream_unreachable", headers={"Retry-After": "1"}
        )

    def _broke_off(self, error: httpx.HTTPError) -> UpstreamError:
        message = f"{self.who} broke off before it answered: {_reason(error)}"
        return UpstreamError(502, message, at_work=True, code="upstream_broke_off")


def _whole(response: httpx.Response, content: bytes) -> Answer:
    return Answer(response.status_code, _headers(response), content)


def _headers(response: httpx.Response) -> dict[str, str]:
    return {name: response.headers[name] for name in _PASSED_ON if name in response.headers}


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
