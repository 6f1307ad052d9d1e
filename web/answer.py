"""What came back from the tier behind: whole, or its events as they come."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from web.errors import ApiError
from web.events import Ended, Events, EventStream


class UpstreamError(ApiError):
    """The upstream could not be reached, or broke off while it was `at_work` on the request."""

    def __init__(self, status: int, message: str, *, at_work: bool = False, **rest: Any) -> None:
        super().__init__(status, message, **rest)
        self.at_work = at_work


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
