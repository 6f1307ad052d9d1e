"""Which Kubernetes plugin the engine gets: the real one where it can be had, else the stand-in."""

from __future__ import annotations

import functools
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from tests.programs import program

_REPOSITORY = Path(__file__).parents[2]
_INSTALL_LIMIT_S = 120.0
_SCRIPT = """#!/bin/sh
PYTHONPATH='{repository}' exec '{python}' -m tests.cluster.kubernetes_plugin "$@"
"""


@functools.cache
def chosen_plugin() -> Literal["real", "stand-in"]:
    """`real` is then installed for this user, where every workspace looks."""
    number = version("pulumi-kubernetes")
    if (Path.home() / ".pulumi" / "plugins" / f"resource-kubernetes-v{number}").is_dir():
        return "real"
    command = [str(program("pulumi")), "plugin", "install", "resource", "kubernetes", number]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_INSTALL_LIMIT_S)
    except subprocess.TimeoutExpired:
        return "stand-in"
    return "real" if done.returncode == 0 else "stand-in"


def plugin_line() -> str:
    """What a run says at its end; "" when no test has asked."""
    return f"kubernetes plugin: {chosen_plugin()}" if chosen_plugin.cache_info().currsize else ""


def plugin_folders(folder: Path) -> list[Path]:
    """What has to stand on PATH: nothing for the real plugin, which the engine finds itself."""
    if chosen_plugin() == "real":
        return []
    executable = folder / "pulumi-resource-kubernetes"
    folder.mkdir(parents=True, exist_ok=True)
    executable.write_text(_SCRIPT.format(repository=_REPOSITORY, python=sys.executable))
    executable.chmod(0o755)
    return [folder]
