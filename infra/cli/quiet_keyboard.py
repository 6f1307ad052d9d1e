"""A terminal that does not show what is typed, and keeps it."""

from __future__ import annotations

import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_LOCAL = 3  # the local flags' place in what tcgetattr returns


@contextmanager
def quiet_keyboard(keyboard: TextIO) -> Iterator[None]:
    """What is typed meanwhile is not shown and waits for who reads next. Ctrl-C acts as ever and
    takes nothing of it away. Of a pipe nothing changes."""
    if not keyboard.isatty():
        yield
        return
    before = termios.tcgetattr(keyboard)
    quiet = termios.tcgetattr(keyboard)
    # Not by lines: a line would be cut after 4,095 bytes.
    quiet[_LOCAL] = (quiet[_LOCAL] & ~(termios.ECHO | termios.ICANON)) | termios.NOFLSH
    termios.tcsetattr(keyboard, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSANOW, before)
