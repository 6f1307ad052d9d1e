"""What is wrong with a stack file: every fault at once, each with path, value and rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MISSING = object()


@dataclass(frozen=True)
class Fault:
    """One broken rule. `value` is MISSING where there is no value to show."""

    path: str
    value: object
    rule: str

    def __str__(self) -> str:
        if self.value is MISSING:
            return f"{self.path}: {self.rule}"
        shown = repr(self.value)
        return f"{self.path} = {shown if len(shown) <= 80 else shown[:77] + '...'}: {self.rule}"


class StackConfigError(ValueError):
    """A stack file (or an import) that breaks rules; the message has one line for each fault."""

    def __init__(self, source: str, faults: Iterable[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        lines = [str(fault) for fault in self.faults]
        count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
        super().__init__("\n  ".join([f"{source}: {count}", *lines]))
