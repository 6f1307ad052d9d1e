"""What of an answer reached its client, over all the connections that it came by. Pure.

Events are held until something confirms them (contract/carry.py), so that what a dead process had
half said is dropped, and comes again.
"""

from __future__ import annotations

import json
from typing import Any

from contract.carry import LINE, Advance, Beginning, Carry, CarryError, parse_line
from web.answer import UpstreamError
from web.errors import ApiError
from web.events import DONE

_DATA = b"data:"
_ERROR = (b'data: {"error"', b'data:{"error"')
_END = b"\n\n"


class Delivered:
    """`base` is what the caller brought itself. It gets the lines with `passes_lines`, and with
    `whole` nothing before the end, when `content` is the body.

    A service that knows no ids says no Beginning. Its events pass as they come; those that start
    every stream alike are held until something is said.
    """

    def __init__(self, base: Carry | None, *, passes_lines: bool, whole: bool) -> None:
        self._passes_lines, self._whole = passes_lines, whole
        self._beginning = base.beginning if base else None
        self._ids = [list(ids) for ids in base.ids] if base else []
        # How often it was lost since the last new id.
        self.fruitless = base.fruitless if base else 0
        # Something was passed on, so that nobody can begin anew.
        self.begun = False
        self.content = b""
        self.error: dict[str, Any] | None = None
        self.ended = False
        self._told = False
        self.connected()

    def connected(self) -> None:
        """Another connection begins: what was held of the one before is dropped."""
        self._held = b""
        self.knows_ids = False

    @property
    def carry(self) -> Carry | None:
        """With what to go on; None where the answer can only begin anew."""
        if self._beginning is None:
            return None
        return Carry(self._beginning, tuple(map(tuple, self._ids)), self.fruitless)

    @property
    def tokens(self) -> int:
        """The ids of all choices."""
        return sum(map(len, self._ids))

    def whole_ones(self, some: bytes) -> list[bytes]:
        """The events of `some`, which begins with one.

        What lacks its blank line is the rest of a connection that was cut, unless the service
        knows no ids: such ones may leave it out at the end.
        """
        *events, rest = some.split(_END)
        if rest and self._beginning is None and not rest.startswith(b":"):
            events.append(rest)
        return [event for event in events if event]

    def push(self, event: bytes) -> bytes:
        """One event, without the blank line that ends it; returns what is passed on.

        Raises UpstreamError where another connection has to go on, ApiError 502 for what breaks
        the contract.
        """
        if event.startswith(LINE):
            return self._line(event)
        if event.startswith(b":"):
            return b"" if self._whole else event + _END
        if event.startswith(_ERROR):
            error = _document(event).get("error")
            if isinstance(error, dict):
                return self._failed(error, event)
        if self._beginning is not None and not self.knows_ids:
            raise _broken("events came without a beginning")
        if event + _END == DONE:
            return self._end(DONE)
        self._held += event + _END
        if self.knows_ids or not (self.begun or _says_something(event)):
            return b""
        return self._released()

    def closed(self) -> bytes:
        """The connection ended by itself. Services that know no ids may end an answer so."""
        if self._beginning is None and (self.begun or self._held):
            return self._end(b"")
        return b""

    def _line(self, event: bytes) -> bytes:
        try:
            told = parse_line(event)
        except CarryError as error:
            raise _broken(str(error)) from error
        if isinstance(told, Beginning):
            self._began(told)
            passed = b"" if self._told else event + _END
            self._told = True
            return passed if self._passes_lines else b""
        return self._advanced(told, event)

    def _began(self, beginning: Beginning) -> None:
        self.knows_ids = True
        if self._beginning is None:
            self._beginning = beginning
            self._ids = [[] for _ in range(beginning.choices)]

    def _advanced(self, advance: Advance, event: bytes) -> bytes:
        if not self.knows_ids or not 0 <= advance.index < len(self._ids):
            raise _broken(f"ids came for choice {advance.index}")
        if advance.ids:
            self._ids[advance.index] += advance.ids
            self.fruitless = 0
        passed = self._released()
        return passed + event + _END if self._passes_lines else passed

    def _failed(self, error: dict[str, Any], event: bytes) -> bytes:
        """An error ends the answer, unless it says that another time is a better one."""
        if error.get("type") == "service_unavailable_error" and (self.knows_ids or not self.begun):
            again = {"Retry-After": "1"}
            failure = UpstreamError(503, str(error.get("message")), at_work=True, headers=again)
            failure.body = {"error": error}
            raise failure
        self.error = {"error": error}
        return self._end(event + _END)

    def _end(self, last: bytes) -> bytes:
        self.ended, self.fruitless = True, 0
        return self._released() + last

    def _released(self) -> bytes:
        held, self._held = self._held, b""
        if self._whole:
            self.content += held.removeprefix(_DATA).strip()
            return b""
        self.begun = self.begun or bool(held)
        return held


def _broken(what: str) -> ApiError:
    return ApiError(502, f"the upstream's lines of ids are wrong: {what}", code="bad_answer")


def _document(event: bytes) -> dict[str, Any]:
    try:
        document = json.loads(event.removeprefix(_DATA))
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _says_something(event: bytes) -> bool:
    """False for what starts every stream alike: a chat's empty first delta."""
    try:
        choices = json.loads(event.removeprefix(_DATA))["choices"]
        return any(
            choice.get("text")
            or choice.get("finish_reason")
            or any(value for name, value in choice.get("delta", {}).items() if name != "role")
            for choice in choices
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return True
