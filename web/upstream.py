"""The tier behind this one, asked over HTTP; what it streams is passed on as it comes.

A request that has delivered nothing is sent once more when the upstream dies under it, after
waiting for its return; one that has delivered something ends with an error that says so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.responses import Response

from web import deadline as request_deadline
from web.errors import ApiError
from web.events import Ended, Events, EventStream, whole_events
from web.request_id import HEADER, current_request_id

CONNECT_TIMEOUT_S = 5.0
READY_TIMEOUT_S = 2.0
READY_POLL_S = 0.25
# Shorter than the server's keep-alive, so that a pooled connection is never closed in our hands.
POOL_EXPIRY_S = 30.0
# A stream without an end says something at least this often, or it is given up.
SILENCE_LIMIT_S = 10.0
EVENT_STREAM = "text/event-stream"
_PASSED_ON = ("content-type", "retry-after", "cache-control")


class UpstreamError(ApiError):
    """The upstream could not be reached or broke off."""


@dataclass
class Answer:
    """What came back: the whole content, or `events`, of which the first have come.

    Whoever holds an answer with events makes it the `response`, which closes them.
    """

    status: int
    headers: dict[str, str]
    content: bytes = b""
    events: Events | None = None
    close: Callable[[], Awaitable[None]] | None = None
    deadline: float | None = None
    too_late: ApiError | None = None

    def response(self, ended: Ended | None = None) -> Response:
        """The answer passed on, its events as they come; `ended` as in EventStream."""
        if self.events is None:
            return Response(self.content, self.status, self.headers)
        return EventStream(
            self.events,
            close=self.close,
            status_code=self.status,
            headers=self.headers,
            deadline=self.deadline,
            too_late=self.too_late,
            ended=ended,
        )

    def document(self) -> dict[str, Any]:
        """The content as a JSON object; raises ApiError 502 when it is none."""
        try:
            document = json.loads(self.content)
        except ValueError as error:
            raise ApiError(502, "the upstream's answer is not JSON") from error
        if not isinstance(document, dict):
            raise ApiError(502, "the upstream's answer is not a JSON object")
        return document

    @property
    def error(self) -> dict[str, Any]:
        """What the upstream says is wrong, in the one error body of all tiers; {} if nothing."""
        try:
            found = self.document().get("error")
        except ApiError:
            return {}
        return found if isinstance(found, dict) else {}


class Upstream:
    """`name` is what errors call it; `patience_s` how long a failed request waits for its return.

    With `patience_s` 0 nothing is sent twice.
    """

    def __init__(self, name: str, url: str, *, deadline_s: float, patience_s: float = 0.0) -> None:
        self.name, self.url = name, url
        self._deadline_s, self._patience_s = deadline_s, patience_s
        self._connections = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_keepalive_connections=64, keepalive_expiry=POOL_EXPIRY_S),
            headers={"Accept-Encoding": "identity"},
            trust_env=False,
        )

    async def close(self) -> None:
        """Whoever still asks, or asks again, is told that it cannot be reached."""
        await self._connections.aclose()

    @property
    def _client(self) -> httpx.AsyncClient:
        if self._connections.is_closed:
            raise httpx.ConnectError("it is no longer one of the addresses")
        return self._connections

    async def ready(self) -> str:
        """Why it does not serve, in one sentence; "" when it does."""
        return (await self._readiness())[0]

    async def _readiness(self) -> tuple[str, bool]:
        """What `ready` says, and whether that is the end: no waiting will change it."""
        try:
            answer = await self._client.get("/readyz", timeout=READY_TIMEOUT_S)
        except httpx.HTTPError as error:
            return f"{self.name} at {self.url} does not answer: {_reason(error)}", False
        if answer.is_success:
            return "", False
        try:
            document = answer.json()
            reason, failed = str(document["reason"]), document.get("state") == "failed"
        except (ValueError, KeyError, TypeError, AttributeError):
            reason, failed = f"HTTP {answer.status_code}", False
        return f"{self.name} is not ready: {reason}", failed

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

        Ends when it breaks off or falls silent.
        """
        timeout = httpx.Timeout(SILENCE_LIMIT_S, connect=CONNECT_TIMEOUT_S)
        begun = False
        try:
            async with self._client.stream("GET", path, timeout=timeout) as response:
                if not response.is_success:
                    message = f"{self.name} answered {path} with HTTP {response.status_code}"
                    raise ApiError(502, message)
                async for events in whole_events(response.aiter_raw()):
                    begun = True
                    yield events
        except httpx.HTTPError as error:
            if not begun:
                raise self._unreachable(error) from error

    async def ask(self, path: str, document: dict[str, Any]) -> Answer:
        """POST `document`. The upstream's own errors come back as an Answer with their status.

        Raises UpstreamError (502 and 503) and ApiError 504 when the deadline passes, this tier's
        or the client's own.
        """
        allowed = request_deadline.remaining_s(self._deadline_s)
        deadline = asyncio.get_running_loop().time() + allowed
        # Compact: what was within a limit at this tier is within the same one at the next.
        content = json.dumps(
            document, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()
        try:
            async with asyncio.timeout_at(deadline):
                return await self._ask_patiently(path, content, deadline)
        except TimeoutError as error:
            raise self.too_late() from error

    async def _ask_patiently(self, path: str, content: bytes, deadline: float) -> Answer:
        failure: UpstreamError | None = None
        try:
            answer = await self._ask_once(path, content, deadline)
        except UpstreamError as error:
            failure = error
        else:
            if answer.status != httpx.codes.SERVICE_UNAVAILABLE:
                return answer
        if self._patience_s and await self._returned():
            return await self._ask_once(path, content, deadline)
        if failure is not None:
            raise failure
        return answer

    async def _returned(self) -> bool:
        """True as soon as the upstream is ready, False after `patience_s` or in its end state."""
        try:
            async with asyncio.timeout(self._patience_s):
                while True:
                    reason, failed = await self._readiness()
                    if failed or not reason:
                        return not failed
                    await asyncio.sleep(READY_POLL_S)
        except TimeoutError:
            return False

    async def _ask_once(self, path: str, content: bytes, deadline: float) -> Answer:
        left = deadline - asyncio.get_running_loop().time()
        headers = {
            "Content-Type": "application/json",
            HEADER: current_request_id() or "",
            request_deadline.HEADER: f"{max(left, 0.001):.3f}",
        }
        try:
            request = self._client.build_request("POST", path, content=content, headers=headers)
            response = await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        streaming = response.headers.get("content-type", "").startswith(EVENT_STREAM)
        kept = False
        try:
            if not streaming:
                return _whole(response, await response.aread())
            events = whole_events(response.aiter_raw())
            begun = await _until_content(events)
            kept = True
            return Answer(
                response.status_code,
                _headers(response),
                events=self._delivered(begun, events),
                close=response.aclose,
                deadline=deadline,
                too_late=self.too_late(),
            )
        except httpx.HTTPError as error:
            raise self._broke_off(error) from error
        finally:
            if not kept:
                await response.aclose()

    async def _delivered(self, begun: bytes, events: AsyncIterator[bytes]) -> Events:
        yield begun
        try:
            async for piece in events:
                yield piece
        except httpx.HTTPError as error:
            who = f"{self.name} at {self.url}"
            message = f"{who} died while it answered; what came until here is cut"
            raise UpstreamError(502, message, code="upstream_died_mid_stream") from error

    def _unreachable(self, error: httpx.HTTPError) -> UpstreamError:
        message = f"{self.name} at {self.url} cannot be reached: {_reason(error)}"
        return UpstreamError(
            503, message, code="upstream_unreachable", headers={"Retry-After": "1"}
        )

    def _broke_off(self, error: httpx.HTTPError) -> UpstreamError:
        message = f"{self.name} at {self.url} broke off before it answered: {_reason(error)}"
        return UpstreamError(502, message, code="upstream_broke_off")

    def too_late(self) -> ApiError:
        allowed = request_deadline.allowed_s(self._deadline_s)
        message = f"{self.name} did not finish within {allowed:g} s, the request deadline"
        return ApiError(504, message, code="deadline_exceeded")


async def _until_content(events: AsyncIterator[bytes]) -> bytes:
    """The first events up to one that says something: until then, nothing is delivered."""
    begun = b""
    async for piece in events:
        begun += piece
        if any(_says_something(line) for line in piece.split(b"\n")):
            break
    return begun


def _says_something(line: bytes) -> bool:
    """False for what starts every stream alike: comments, and a chat's empty first delta."""
    if not line.startswith(b"data:"):
        return False
    try:
        choices = json.loads(line[5:])["choices"]
        return any(
            choice.get("text")
            or choice.get("finish_reason")
            or any(value for name, value in choice.get("delta", {}).items() if name != "role")
            for choice in choices
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return True


def _whole(response: httpx.Response, content: bytes) -> Answer:
    return Answer(response.status_code, _headers(response), content)


def _headers(response: httpx.Response) -> dict[str, str]:
    return {name: response.headers[name] for name in _PASSED_ON if name in response.headers}


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
