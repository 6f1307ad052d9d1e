"""What is wrong with a stack file: every fault at once, each with path, value and rule."""

from __future__ import annotations

from collections.abc import Iterable

from contract.faults import Fault


class StackConfigError(ValueError):
    """A stack file (or an import) that breaks rules; the message has one line for each fault."""

    def __init__(self, source: str, faults: Iterable[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        lines = [str(fault) for fault in self.faults]
        count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
        super().__init__("\n  ".join([f"{source}: {count}", *lines]))
