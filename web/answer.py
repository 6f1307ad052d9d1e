"""What came back from the tier behind: whole, or its events as they come.

Its headers have come, so that the request is admitted. Until its events say something, nothing is
delivered, and what breaks off may be asked for again.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from starlette.responses import Response

from web.errors import ApiError
from web.events import Ended, Events, EventStream


class UpstreamError(ApiError):
    """The upstream could not be reached or broke off.

    `delivered`: something of its answer had been passed on, so that nobody else can be asked.
    """

    delivered = False


@dataclass
class Answer:
    """The whole content, or `events`; an upstream's error has its status, and no events.

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

    def refusal(self, who: str) -> ApiError:
        """What `who` answered instead of what it was asked for, with its own body."""
        names = ("retry-after",)
        headers = {name: self.headers[name] for name in names if name in self.headers}
        message = f"{who} answered with HTTP {self.status}"
        try:
            document = self.document()
            document["error"]["message"] = str(document["error"]["message"])
        except (ApiError, KeyError, TypeError):
            return ApiError(502, message, code="bad_answer", headers=headers)
        error = ApiError(self.status, message, headers=headers)
        error.body = document
        return error


Again: TypeAlias = Callable[[UpstreamError], Awaitable[Answer]]


def or_another(answer: Answer, again: Again, who: str) -> Answer:
    """`answer`; where its events break off with nothing delivered, those that `again` gets follow.

    `again` is told what broke off, and raises it, or another ApiError, where that is the end. An
    answer of its that is no stream ends this one with the error that it has.
    """
    if answer.events is None:
        return answer
    tries = _Tries(answer, answer.events, again, who)
    return replace(answer, events=tries.events(), close=tries.close)


class _Tries:
    """One answer, and the other in its place."""

    def __init__(self, answer: Answer, events: Events, again: Again, who: str) -> None:
        self._answer, self._first, self._again, self._who = answer, events, again, who

    async def events(self) -> Events:
        try:
            async for events in self._first:
                yield events
            return
        except UpstreamError as error:
            if error.delivered:
                raise
            broken = error
        await self.close()
        self._answer = await self._again(broken)
        if self._answer.events is None:
            raise self._answer.refusal(self._who)
        async for events in self._answer.events:
            yield events

    async def close(self) -> None:
        if self._answer.close is not None:
            await self._answer.close()


class Opening:
    """Holds back what starts every stream alike, until something is said; comments pass."""

    def __init__(self) -> None:
        self._held = b""
        self.over = False

    def push(self, events: bytes) -> bytes:
        """Whole events as they came; returns what is passed on."""
        if self.over:
            return events
        if any(_says_something(line) for line in events.split(b"\n")):
            return self.end() + events
        comments = b""
        for event in filter(None, events.split(b"\n\n")):
            if event.startswith(b":"):
                comments += event + b"\n\n"
            else:
                self._held += event + b"\n\n"
        return comments

    def end(self) -> bytes:
        """What was held back."""
        self.over = True
        held, self._held = self._held, b""
        return held


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


def unavailable(events: bytes) -> UpstreamError | None:
    """The error that the last of some whole events is, if it is one that a 503 would have been."""
    *_, last = events.rstrip().split(b"\n\n")
    if b'"service_unavailable_error"' not in last:
        return None
    try:
        document = json.loads(last.removeprefix(b"data:"))
        if document["error"]["type"] != "service_unavailable_error":
            return None
        error = UpstreamError(503, str(document["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        return None
    error.body = document
    return error
