"""The programs beside Python that tests run: `python -m tests.programs` brings what is missing.

Debian packages come by apt-get where that is allowed, Go programs are built once into a cache
folder. What cannot be had is said in one line, and the tests that need it are skipped with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.cluster import go_programs

# The program and the Debian package that brings it.
_DEBIAN_PACKAGES = {
    "redis-server": "redis-server",
    "chromium": "chromium",
    "prometheus": "prometheus",
    "promtool": "prometheus",
}
CONTROL_PLANE = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kwok",
)
PULUMI = ("pulumi", "pulumi-language-python")
PULUMI_YAML = ("pulumi-language-yaml",)


def program(name: str) -> Path | None:
    """Where the program lies; None when it is not on this machine in the right version."""
    if name in _DEBIAN_PACKAGES:
        found = shutil.which(name)
        return Path(found) if found else None
    return go_programs.find(name)


def needs(*names: str) -> pytest.MarkDecorator:
    """Skips a test, or with `pytestmark` a module, when one of the programs is missing.

    Looked up when the test is about to run, so that who runs others waits for none of it.
    """
    return pytest.mark.needs(*names)


def needed_by(item: pytest.Item) -> list[str]:
    """The programs of its marks."""
    return [name for mark in item.iter_markers("needs") for name in mark.args]


def skip_without(names: Iterable[str]) -> None:
    """What the mark does."""
    missing = [name for name in names if program(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing: run `python -m tests.programs`")


def main() -> int:
    """Bring all that is missing, and say how that ended as an exit code."""
    return bring((*_DEBIAN_PACKAGES, *go_programs.GO_PROGRAMS))


def bring(names: Iterable[str]) -> int:
    """Bring what is missing. 0 also where that cannot be: the tests say what they skip."""
    wanted = set(names)
    _install_packages(wanted & _DEBIAN_PACKAGES.keys())
    try:
        reason = go_programs.build_missing(
            name for name in go_programs.GO_PROGRAMS if name in wanted
        )
    except subprocess.CalledProcessError as failure:
        print(f"{' '.join(failure.cmd)}\n{failure.output}", file=sys.stderr)
        return 1
    if reason:
        print(f"Tests will be skipped. {reason}")
    return 0


def _install_packages(names: Iterable[str]) -> None:
    missing = sorted({_DEBIAN_PACKAGES[name] for name in names if program(name) is None})
    if not missing:
        return
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"Tests will be skipped. Missing: {' '.join(missing)} (`sudo {' '.join(install)}`)")
        return
    print(f"apt-get install {' '.join(missing)}", flush=True)
    # Runlevel 1: packages that bring a service do not start it.
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["apt-get", "update", "--quiet=2"], [*install, "--quiet=2"]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"Tests will be skipped. {' '.join(command)}: {done.stderr[-1000:]}")
            return


if __name__ == "__main__":
    sys.exit(main())
