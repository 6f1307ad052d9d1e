"""What stops a command on this machine."""

from __future__ import annotations


class LocalStackError(Exception):
    """One paragraph for the user: what is wrong, with what, and what to do."""
