"""The tier behind this one, asked over HTTP; what it streams is passed on as it comes.

A request that has delivered nothing is sent once more when the upstream dies under it, after
waiting for its return; one that has delivered something ends with an error that says so. That a
stream's headers have been passed on changes neither.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import httpx

from web import deadline as request_deadline
from web.answer import Answer, Opening, UpstreamError, or_another, unavailable
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
EVENT_STREAM = "text/event-stream"
_PASSED_ON = ("content-type", "retry-after", "cache-control")


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
                if not self._patience_s:
                    return answer
                return or_another(answer, partial(self._again, path, content, deadline), self.name)
        if self._patience_s and await self._returned():
            return await self._ask_once(path, content, deadline)
        if failure is not None:
            raise failure
        return answer

    async def _again(
        self, path: str, content: bytes, deadline: float, failure: UpstreamError
    ) -> Answer:
        if await self._returned():
            return await self._ask_once(path, content, deadline)
        raise failure

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
        if response.headers.get("content-type", "").startswith(EVENT_STREAM):
            return Answer(
                response.status_code,
                _headers(response),
                events=self._delivered(response),
                close=response.aclose,
                deadline=deadline,
                too_late=self.too_late(),
            )
        try:
            return _whole(response, await response.aread())
        except httpx.HTTPError as error:
            raise self._broke_off(error) from error
        finally:
            await response.aclose()

    async def _delivered(self, response: httpx.Response) -> Events:
        """The answer's events; the first item is ADMITTED.

        Who waits for the upstream's return is also told of a 503 that came too late for a status.
        """
        yield ADMITTED
        opening = Opening()
        try:
            async for events in whole_events(response.aiter_raw()):
                waits = bool(self._patience_s) and not opening.over
                passed = opening.push(events)
                if waits and opening.over and (refusal := unavailable(events)):
                    raise refusal
                if passed:
                    yield passed
        except httpx.HTTPError as error:
            failure = self._died() if opening.over else self._broke_off(error)
            raise failure from error
        if held := opening.end():
            yield held

    def _unreachable(self, error: httpx.HTTPError) -> UpstreamError:
        message = f"{self.name} at {self.url} cannot be reached: {_reason(error)}"
        return UpstreamError(
            503, message, code="upstream_unreachable", headers={"Retry-After": "1"}
        )

    def _died(self) -> UpstreamError:
        who = f"{self.name} at {self.url}"
        message = f"{who} died while it answered; what came until here is cut"
        died = UpstreamError(502, message, code="upstream_died_mid_stream")
        died.delivered = True
        return died

    def _broke_off(self, error: httpx.HTTPError) -> UpstreamError:
        message = f"{self.name} at {self.url} broke off before it answered: {_reason(error)}"
        return UpstreamError(502, message, code="upstream_broke_off")

    def too_late(self) -> ApiError:
        allowed = request_deadline.allowed_s(self._deadline_s)
        message = f"{self.name} did not finish within {allowed:g} s, the request deadline"
        return ApiError(504, message, code="deadline_exceeded")


def _whole(response: httpx.Response, content: bytes) -> Answer:
    return Answer(response.status_code, _headers(response), content)


def _headers(response: httpx.Response) -> dict[str, str]:
    return {name: response.headers[name] for name in _PASSED_ON if name in response.headers}


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
