"""The folder .splitstack/<deployment_name>: specs, token, logs, sessions, and who runs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from contract.signature import signing_key
from contract.specs import read_token
from infra.local.edit import RUNNING, EditState
from infra.local.process import KeptProcess, start_time
from infra.stack.faults import UserError

ROOT = Path(".splitstack")


@dataclass(frozen=True)
class ProcessState:
    """A process of the stack; `pid` None while it is not running. `started` as in start_time."""

    name: str
    tier: str
    pid: int | None
    started: int | None
    restarts: int
    url: str
    log: str

    @classmethod
    def of(cls, process: KeptProcess) -> ProcessState:
        definition = process.definition
        return cls(
            name=definition.name,
            tier=definition.tier,
            pid=process.process_id,
            started=process.started,
            restarts=process.restarts,
            url=definition.url,
            log=str(definition.log),
        )


@dataclass(frozen=True)
class StackState:
    """state.json. `phase` is preparing, starting, ready, draining or failed; `reason` says why.

    `stack_file` and `sets` are what it was made of, `about` is what an edit of it needs to know:
    `addresses` of its processes, `ranks` with the cores and memory that they were given. `edit` is
    the one that runs, or the last one.
    """

    stack: str
    deployment_name: str
    pid: int
    started: int | None
    phase: str
    reason: str = ""
    master_url: str = ""
    front_url: str = ""
    summary: str = ""
    processes: tuple[ProcessState, ...] = ()
    stack_file: str = ""
    sets: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    edit: EditState | None = None


class StateFolder:
    """The folder of one deployment."""

    def __init__(self, deployment_name: str, root: Path = ROOT) -> None:
        self.deployment_name = deployment_name
        self.path = root.absolute() / deployment_name

    @property
    def supervisor_log(self) -> Path:
        return self.log("supervisor")

    @property
    def token_file(self) -> Path:
        return self.path / "token"

    @property
    def signing_key_file(self) -> Path:
        return self.path / "signing_key"

    @property
    def wanted_file(self) -> Path:
        """What `apply` hands to the supervisor."""
        return self.path / "wanted.json"

    @property
    def served_spec(self) -> Path:
        """What has answered, and what a master that starts reads."""
        return self.spec("group")

    def log(self, name: str) -> Path:
        return self.path / f"{name}.log"

    def logs(self) -> list[Path]:
        return sorted(self.path.glob("*.log"))

    def spec(self, name: str) -> Path:
        return self.path / f"{name}.json"

    @property
    def request_log(self) -> Path:
        return self.path / "requests.sqlite3"

    def sessions(self, block_id: str) -> Path:
        return self.path / f"sessions-{block_id}.sqlite3"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held while the deployment runs; raises UserError that names who holds it."""
        with self._locked("lock") as is_ours:
            if not is_ours:
                state = self.read()
                holder = f"process {state.pid}" if state else "another process"
                raise UserError(
                    f"deployment {self.deployment_name} is already running on this machine "
                    f"({holder}, {self.path}); edit it with: splitstack apply -s "
                    f"{self.deployment_name}, end it with: splitstack down -s "
                    f"{self.deployment_name}"
                )
            yield

    @contextlib.contextmanager
    def lock_edit(self) -> Iterator[None]:
        """Held by the `apply` that is followed; raises UserError where there is one."""
        with self._locked("apply.lock") as is_ours:
            if not is_ours:
                state = self.read()
                edit = state.edit if state is not None else None
                how_far = f" ({edit.text})" if edit is not None and edit.phase == RUNNING else ""
                raise UserError(
                    f"another `splitstack apply` of deployment {self.deployment_name} runs"
                    f"{how_far}; wait until it has ended"
                )
            yield

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[bool]:
        """Whether the lock could be had."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        with (self.path / name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_ours = False
            else:
                is_ours = True
            yield is_ours

    def make_token(self) -> None:
        """A new group token and the key that is made of it, readable by their owner only."""
        _write_secret(self.token_file, secrets.token_hex(32))
        _write_secret(self.signing_key_file, signing_key(read_token(self.token_file)).hex())

    def write(self, state: StackState) -> None:
        """Replaces state.json in one step."""
        partial = self.path / "state.json.partial"
        partial.write_text(json.dumps(asdict(state), indent=2) + "\n", "utf-8")
        partial.replace(self.path / "state.json")

    def read(self) -> StackState | None:
        """None where nothing was started here, or its `down` has been."""
        try:
            document: dict[str, Any] = json.loads((self.path / "state.json").read_text("utf-8"))
            document["processes"] = tuple(ProcessState(**row) for row in document["processes"])
            document["sets"] = tuple(document["sets"])
            document["edit"] = EditState(**document["edit"]) if document["edit"] else None
            return StackState(**document)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def clear(self) -> None:
        """Remove the specs and logs of the run before; sessions stay."""
        for path in [*self.path.glob("*.json"), *self.logs()]:
            if path != self.supervisor_log:  # --detach is writing to it
                path.unlink()

    def forget(self) -> None:
        """Remove what only a running stack needs; logs and sessions stay."""
        for path in [self.path / "state.json", self.token_file, self.signing_key_file]:
            path.unlink(missing_ok=True)


def _write_secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{text}\n")


def runs(pid: int | None, started: int | None) -> bool:
    """Whether that very process, not another of the same pid, is there."""
    return pid is not None and started is not None and start_time(pid) == started


def supervisor_runs(state: StackState) -> bool:
    return runs(state.pid, state.started)


def kill_leftovers(state: StackState) -> list[str]:
    """SIGKILL what is left of a stack whose supervisor is gone; returns the names."""
    left = [row for row in state.processes if runs(row.pid, row.started)]
    for row in left:
        with contextlib.suppress(ProcessLookupError):
            assert row.pid is not None
            os.kill(row.pid, signal.SIGKILL)
    return [row.name for row in left]


def find_state(name: str, root: Path = ROOT) -> tuple[StateFolder, StackState]:
    """The deployment of that stack or of that deployment name, "" for the only one that runs;
    raises UserError.

    Looks at what was started, not at the stack file, which may have been edited since.
    """
    if not name:
        return _find_only(root)
    found = []
    for folder, state in _running(root):
        if folder.deployment_name == name:
            return folder, state
        if state.stack == name:
            found.append((folder, state))
    if len(found) > 1:
        names = ", ".join(folder.deployment_name for folder, _ in found)
        raise UserError(
            f"stack {name} runs as several deployments ({names}); name one of them with -s"
        )
    if not found:
        raise UserError(
            f"no stack and no deployment {name} is running below {root.absolute()}; start one "
            f"with: splitstack up -s {name}"
        )
    return found[0]


def _running(root: Path) -> Iterator[tuple[StateFolder, StackState]]:
    for path in sorted(root.glob("*/state.json")):
        folder = StateFolder(path.parent.name, root)
        state = folder.read()
        if state is not None:
            yield folder, state


def _find_only(root: Path) -> tuple[StateFolder, StackState]:
    found = list(_running(root))
    if len(found) > 1:
        names = ", ".join(folder.deployment_name for folder, _ in found)
        raise UserError(f"several stacks run below {root.absolute()}; name one with -s: {names}")
    if not found:
        raise UserError(
            f"no stack is running below {root.absolute()}; start one with: splitstack up -s STACK"
        )
    return found[0]


def find_folder(name: str, root: Path = ROOT) -> StateFolder:
    """As find_state, or the folder that an ended deployment of that name has left."""
    if not name:
        return find_state(name, root)[0]
    folder = StateFolder(name, root)
    return folder if folder.logs() else find_state(name, root)[0]
