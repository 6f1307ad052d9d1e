"""What a rank has to have before its engine can start: the program, and the model's files."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from contract.models import CONFIG
from contract.specs import ENGINE_VERSION, GroupSpec, KeeperSpec
from runner.errors import RunnerError, UnsupportedModel
from runner.models.folder import resolve_model
from runner.models.progress import FetchProgress
from runner.models.room import forget_other_models
from runner.transport.control import Prepare

_ASK_VERSION = "import importlib.metadata as m; print(m.version('vllm'))"
_ASK_S = 60.0


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model whose files lie in `folder`, all of them: the engine picks its own tensors."""

    folder: Path
    commit: str


class EngineUnusable(RunnerError):
    """The engine is not there, or another version of it is."""

    exit_code = 2


def prepare(
    spec: KeeperSpec, order: Prepare, progress: FetchProgress, held: PreparedModel | None
) -> PreparedModel:
    """Check the engine, fetch the model. From any thread. Raises RunnerError."""
    check_engine(spec.engine)
    if spec.cache_for_two and held is not None:
        forget_other_models(Path(spec.model_cache), [held.folder])
    found = resolve_model(
        order.spec.model_name,
        order.commit,
        spec.model_cache,
        weights=True,
        progress=progress,
        patience_s=spec.stall_s,
    )
    _check_layers(order.spec, found.path)
    return PreparedModel(found.path, found.commit)


def check_engine(program: str) -> None:
    """Raises EngineUnusable."""
    path = shutil.which(program)
    if path is None:
        raise EngineUnusable(
            f"engine = {program!r}: is not installed here; the image of platform vllm has it, and "
            "on one machine `splitstack up` installs it"
        )
    version = _version(Path(path))
    if version and not version.startswith(f"{ENGINE_VERSION}."):
        raise EngineUnusable(
            f"engine = {program!r}: its version is {version}, and this keeper is for "
            f"{ENGINE_VERSION}: take an image with that version"
        )


def _version(program: Path) -> str:
    """As the Python that runs it says; "" for a program that is no script of one."""
    with program.open("rb") as file:
        first = file.readline(500)
    interpreter = first.removeprefix(b"#!").strip().decode("utf-8", "replace")
    if not first.startswith(b"#!") or "python" not in interpreter:
        return ""
    command = [*interpreter.split(), "-I", "-c", _ASK_VERSION]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_ASK_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()


def _check_layers(spec: GroupSpec, folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    count = config.get("num_hidden_layers", config.get("n_layer"))
    end = spec.ranks[-1].layers[1]
    if isinstance(count, int) and count != end:
        raise UnsupportedModel(
            f"layers: those of all ranks end at {end}; {spec.model_name} has {count} layers"
        )
