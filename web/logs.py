"""Logs of every tier: one JSON object a line on standard error, never a prompt or a key."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from web.request_id import current_request_id


class JsonLines(logging.Formatter):
    """time, level, tier, logger, message; request_id inside a request, trace with an exception.

    `extra={"fields": {...}}` of a log call adds keys of its own. `fields` are the process's, on
    every line.
    """

    def __init__(self, tier: str, fields: Mapping[str, object] | None = None) -> None:
        super().__init__()
        self._tier = tier
        self._fields: Mapping[str, object] = {} if fields is None else fields

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "tier": self._tier,
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields,
        }
        if request_id := current_request_id():
            line["request_id"] = request_id
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line |= fields
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


# What is true of the whole process from now on: its rank, the epoch in force.
_process_fields: dict[str, object] = {}


def note_in_logs(name: str, value: object) -> None:
    """`name` stands on every line from now on."""
    _process_fields[name] = value


# A redirect's address may have a signature in it that opens a private file.
_REQUEST_LOGGERS = (
    "httpx", "httpcore", "httpx2", "httpcore2", "uvicorn.access", "uvicorn.error", "asyncio"
)  # fmt: skip


def configure_logging(tier: str, level: int = logging.INFO) -> None:
    """Replace every handler of the process; libraries that log each request are kept quiet."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(tier, _process_fields))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _REQUEST_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
