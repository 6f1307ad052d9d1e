"""What a stack is to be on this machine, handed from `apply` to the supervisor as a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from infra.local.process import ProcessDefinition
from infra.local.rollout import RolloutDefinition, replace_file

RUNNING, DONE, FAILED = "running", "done", "failed"


@dataclass(frozen=True)
class EditState:
    """How far an edit is; `text` is its progress, what it brought, or why it failed."""

    id: str
    phase: str
    text: str = ""


@dataclass(frozen=True)
class Wanted:
    """Processes and the spec that they are to serve; `about` is what state.json has beside.

    `drain_s` seconds is what requests may take to end. `rollout` None: nothing has to be proved.
    """

    definitions: tuple[ProcessDefinition, ...]
    drain_s: float
    rollout: RolloutDefinition | None = None
    id: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        replace_file(path, json.dumps(asdict(self), default=str) + "\n")


def read_wanted(path: Path) -> Wanted | None:
    """None where there is none, or one of another version."""
    try:
        document = json.loads(path.read_text("utf-8"))
        return Wanted(
            definitions=tuple(map(_definition, document["definitions"])),
            drain_s=document["drain_s"],
            rollout=_rollout(document["rollout"]),
            id=document["id"],
            about=document["about"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _rollout(row: dict[str, Any] | None) -> RolloutDefinition | None:
    return RolloutDefinition(**row | {"questions": tuple(row["questions"])}) if row else None


def _definition(row: dict[str, Any]) -> ProcessDefinition:
    given = row | {"command": tuple(row["command"]), "log": Path(row["log"])}
    return ProcessDefinition(**given)
