"""stacks/NAME.lock.json: what a stack's model is, so that nobody has to ask the hub again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contract.faults import MISSING, Fault, faults_of
from contract.models import DEMO_PREFIX
from infra.plan.model_config import ModelConfig, read_model_config
from infra.plan.model_files import BadModel
from infra.stack.config import CommonParams
from infra.stack.faults import StackConfigError, UserError


class ModelLock(BaseModel):
    """The file's content. `commit` "": written by hand, or of a folder, which has none."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    model_name: str
    model_revision: str = ""
    commit: str = ""
    config: dict[str, Any]
    weight_files: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """Names and sizes in bytes."""

    @property
    def text(self) -> str:
        """Of the file: equal locks have equal texts."""
        return json.dumps(self.model_dump(), indent=2, sort_keys=True) + "\n"


@dataclass(frozen=True)
class ModelReader:
    """Where a plan learns what its model is.

    `hub_token` is the stack's, where it can be read; `lock` and the file that it was read from come
    before any question to the hub.
    """

    hub_token: str = ""
    lock: ModelLock | None = None
    lock_path: Path = Path()

    def read(self, common: CommonParams) -> ModelConfig:
        """Raises BadModel, and StackConfigError where the lock is another model's."""
        if self.lock is None:
            return read_model_config(common.model_name, common.model_revision, self.hub_token)
        if faults := list(self._other_model(self.lock, common)):
            raise StackConfigError(str(self.lock_path), faults)
        return ModelConfig(
            self.lock.config, commit=self.lock.commit, weight_files=self.lock.weight_files
        )

    @property
    def note(self) -> str:
        """A sentence for the plan; "" without a lock."""
        if self.lock is None:
            return ""
        if self.lock.commit:
            return f"the model is locked by {self.lock_path} at commit {self.lock.commit}"
        return (
            f"{self.lock_path} has no commit, as one that was written by hand: nothing says that "
            "the ranks have the model that it describes"
        )

    def _other_model(self, lock: ModelLock, common: CommonParams) -> list[Fault]:
        rule = (
            "is not what the stack file says, {!r}: lock the model again with `splitstack plan "
            "--lock`, or remove the lock file"
        )
        pairs = [
            ("model_name", lock.model_name, common.model_name),
            ("model_revision", lock.model_revision, common.model_revision),
        ]
        return [
            Fault(key, locked, rule.format(wanted))
            for key, locked, wanted in pairs
            if locked != wanted
        ]


def model_reader(lock_path: Path, hub_token: str = "") -> ModelReader:
    """With the lock of that file, if there is one; raises StackConfigError with its faults."""
    try:
        text = lock_path.read_bytes()
    except FileNotFoundError:
        return ModelReader(hub_token)
    except OSError as error:
        rule = f"cannot be read: {error.strerror}"
        raise StackConfigError(str(lock_path), [Fault("the file", MISSING, rule)]) from error
    try:
        lock = ModelLock.model_validate_json(text)
    except ValidationError as error:
        faults = faults_of(error, whole="the file", unknown=lambda _location: "unknown key")
        raise StackConfigError(str(lock_path), faults) from None
    return ModelReader(hub_token, lock, lock_path)


def lock_model(common: CommonParams, lock_path: Path) -> ModelReader:
    """What the hub says now, to be written to `lock_path`; raises UserError."""
    name = common.model_name
    if name.startswith(DEMO_PREFIX):
        raise UserError(f"common_params.model_name = {name!r}: never changes, and needs no lock")
    try:
        found = read_model_config(name, common.model_revision, newest=True)
    except BadModel as error:
        raise UserError(f"common_params.model_name = {name!r}: {error}") from error
    if found.config is None:
        raise UserError(f"common_params.model_name = {name!r}: cannot be locked: {found.reason}")
    lock = ModelLock(
        model_name=name,
        model_revision=common.model_revision,
        commit=found.commit,
        config=found.config,
        weight_files=dict(found.weight_files),
    )
    return ModelReader(lock=lock, lock_path=lock_path)
