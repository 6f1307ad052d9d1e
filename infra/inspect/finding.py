"""What `splitstack doctor` found: one sentence each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["fault", "warning", "fine"]


@dataclass(frozen=True)
class Finding:
    """`fault`: `pulumi up` would fail; `warning`: it may, or could not be checked."""

    level: Level
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<7}  {self.subject}: {self.text}"
