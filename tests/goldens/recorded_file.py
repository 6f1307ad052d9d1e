"""The recorded files: compared with what is found, or written anew."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).with_name("recorded")
# Set by `python -m tests.goldens` alone.
RECORD = "SPLITSTACK_RECORD_GOLDENS"
_MOST_LINES = 60


def check_recorded(name: str, found: Any) -> None:
    """`found` is what recorded/`name`.json holds; where it is not, the difference is shown."""
    text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    file = RECORDED / f"{name}.json"
    if os.environ.get(RECORD):
        RECORDED.mkdir(exist_ok=True)
        file.write_text(text, "utf-8")
        return
    recorded = file.read_text("utf-8") if file.is_file() else ""
    if text != recorded:
        lines = difflib.unified_diff(
            recorded.splitlines(), text.splitlines(), f"recorded/{file.name}", "found", lineterm=""
        )
        shown = list(lines)[:_MOST_LINES]
        raise AssertionError("\n".join([f"{name} is not as recorded:", *shown]))


def replaced(value: Any, words: dict[str, str]) -> Any:
    """`value` with this machine's own words (its paths) replaced in every string."""
    if isinstance(value, str):
        for word, name in words.items():
            value = value.replace(word, name)
        return value
    if isinstance(value, dict):
        return {key: replaced(item, words) for key, item in value.items()}
    return [replaced(item, words) for item in value] if isinstance(value, list | tuple) else value
