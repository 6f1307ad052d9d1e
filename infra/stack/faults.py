"""What ends a command with words for its user instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterable

from contract.faults import Fault


class UserError(Exception):
    """One paragraph for the user: what is wrong, with what, and what to do."""


class StackConfigError(ValueError):
    """A stack file (or an import) that breaks rules: every fault at once, on a line of its own."""

    def __init__(self, source: str, faults: Iterable[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        lines = [str(fault) for fault in self.faults]
        count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
        super().__init__("\n  ".join([f"{source}: {count}", *lines]))
