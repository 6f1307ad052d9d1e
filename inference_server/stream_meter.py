"""What a passing event stream costs, read without holding it up."""

from __future__ import annotations

import json
from typing import Any

DATA = b"data: "
END = b"\n\n"
# In a document this is the key: inside of a string its quotes would be escaped.
USAGE_KEY = b'"prompt_tokens"'
DONE = b"data: [DONE]"
ERROR = b'data: {"error"'


def with_usage(document: dict[str, Any]) -> dict[str, Any]:
    """The request with the usage at the stream's end asked for."""
    options = document.get("stream_options")
    if options is None:
        options = {}
    if document.get("stream") is not True or not isinstance(options, dict):
        return document
    return {**document, "stream_options": {**options, "include_usage": True}}


def asks_usage(document: dict[str, Any]) -> bool:
    options = document.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


class StreamMeter:
    """Counts tokens; where the client did not ask for usage, its chunk is taken out again.

    Without a usage chunk (the stream broke off) `completion_tokens` is the number of events.
    """

    def __init__(self, *, pass_usage: bool, keep_text: bool) -> None:
        self._pass_usage, self._keep_text = pass_usage, keep_text
        self._events = 0
        self._usage: dict[str, Any] | None = None
        self._texts: list[str] = []
        self.done = self.failed = False

    @property
    def prompt_tokens(self) -> int | None:
        return None if self._usage is None else _count(self._usage, "prompt_tokens")

    @property
    def completion_tokens(self) -> int | None:
        return self._events if self._usage is None else _count(self._usage, "completion_tokens")

    @property
    def text(self) -> str | None:
        return "".join(self._texts) if self._keep_text else None

    def push(self, events: bytes) -> bytes:
        """Whole events as they came; returns what the client gets of them."""
        self._events += events.count(DATA)
        self.done = self.done or DONE in events
        self.failed = self.failed or ERROR in events
        if USAGE_KEY not in events and not self._keep_text:
            return events
        return b"".join(
            event + END for event in events.split(END) if event and not self._takes_out(event)
        )

    def _takes_out(self, event: bytes) -> bool:
        try:
            document = json.loads(event.removeprefix(DATA))
            choices, usage = document["choices"], document.get("usage")
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        if self._keep_text:
            self._texts += [_text(choice) for choice in choices]
        if not isinstance(usage, dict):
            return False
        self._usage = usage
        return not choices and not self._pass_usage


def _text(choice: dict[str, Any]) -> str:
    return choice.get("text") or choice.get("delta", {}).get("content") or ""


def _count(usage: dict[str, Any], name: str) -> int | None:
    count = usage.get(name)
    return count if isinstance(count, int) else None
