"""One JSON object a line."""

from __future__ import annotations

import json
import logging
import sys

from web.logs import JsonLines


def test_a_line_is_json_with_its_fields_and_trace() -> None:
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        record = logging.LogRecord("a.b", 30, "f", 1, "said %s", ("x\ny",), sys.exc_info())
    record.fields = {"epoch": 3}
    text = JsonLines("master").format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["tier"], line["level"], line["message"]) == ("master", "warning", "said x\ny")
    assert line["epoch"] == 3
    assert "RuntimeError" in line["trace"]


def test_what_is_true_of_the_process_stands_on_every_line() -> None:
    known: dict[str, object] = {"rank": 2}
    format_line = JsonLines("stage", known).format
    record = logging.LogRecord("a.b", 20, "f", 1, "loaded", (), None)
    assert json.loads(format_line(record))["rank"] == 2
    known["epoch"] = 7
    assert json.loads(format_line(record))["epoch"] == 7
