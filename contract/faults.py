"""A value in an error message, whatever a client sent."""

from __future__ import annotations

import reprlib
from typing import Any

MAX_SHOWN_VALUE = 80
_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = MAX_SHOWN_VALUE


def shown_value(value: Any) -> str:
    """`value` as an error shows it: its repr, cut to MAX_SHOWN_VALUE characters.

    reprlib, because a body may hold megabytes or be nested as deep as the parser allows.
    """
    shown = _shorten.repr(value)
    return shown if len(shown) <= MAX_SHOWN_VALUE else shown[: MAX_SHOWN_VALUE - 3] + "..."
