"""Become a container: `python container_root.py FILE`, in a mount namespace of its own.

FILE is JSON: `root` an empty folder, `mounts` with source, target and read_only, `files` with texts
by path, `termination_log` the file that lies at its usual path there, `environment`, `command`. The
machine's folders stay visible, all read-only, but for those that images have of their own: what a
container writes outside its mounts fails as in a pod with `readOnlyRootFilesystem`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_OF_THE_IMAGE = {"etc", "run", "tmp", "var"}
_OF_THE_KERNEL = {"proc", "sys"}
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def main() -> None:
    """Does not return."""
    container = json.loads(Path(sys.argv[1]).read_text())
    root = Path(container["root"])
    _mount("-t", "tmpfs", "none", str(root))
    for entry in Path("/").iterdir():
        if entry.name not in {*_OF_THE_IMAGE, "dev"}:
            _show(entry, root)
    _make_devices(root / "dev", Path(container["termination_log"]))
    for path, text in container["files"].items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    targets = [root / mount["target"].lstrip("/") for mount in container["mounts"]]
    for target in targets:
        target.mkdir(parents=True, exist_ok=True)
    _mount("-o", "remount,ro", str(root))
    for mount, target in zip(container["mounts"], targets, strict=True):
        target.mkdir(parents=True, exist_ok=True)  # in an earlier mount, where that covers it
        _bind(Path(mount["source"]), target, read_only=mount["read_only"])
    os.chroot(root)
    os.chdir("/")
    environment = container["environment"]
    os.execvpe(container["command"][0], container["command"], environment)


def _make_devices(folder: Path, termination_log: Path) -> None:
    """As a container runtime makes them, with the file of the container's last words."""
    folder.mkdir()
    _mount("-t", "tmpfs", "none", str(folder))
    for name in _DEVICES:
        (folder / name).touch()
        _mount("--bind", f"/dev/{name}", str(folder / name))
    for name, target in {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}.items():
        (folder / name).symlink_to(f"/proc/self/fd{target}")
    (folder / "shm").mkdir(mode=0o777)
    log = folder / "termination-log"
    log.touch()
    _mount("--bind", str(termination_log), str(log))


def _show(entry: Path, root: Path) -> None:
    target = root / entry.name
    if entry.is_symlink():
        target.symlink_to(entry.readlink())
    elif entry.is_dir():
        target.mkdir()
        _bind(entry, target, read_only=entry.name not in _OF_THE_KERNEL)


def _bind(source: Path, target: Path, *, read_only: bool) -> None:
    _mount("--rbind", str(source), str(target))
    if read_only:
        _mount("-o", "remount,bind,ro", str(target))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    main()
