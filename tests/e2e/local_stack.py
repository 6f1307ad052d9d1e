"""The shipped stack as `splitstack up --detach` runs it, for tests that look at it from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.waiting import free_ports

STACK = str(Path(__file__).parents[2] / "stacks" / "Pulumi.local.yaml")
UP_LIMIT_S = 420


class LocalStack:
    """In a folder of its own; `url` is the inference server's. `sets` as of `--set`."""

    def __init__(self, folder: Path, ranks: int, sets: Sequence[str] = ()) -> None:
        self.folder = folder
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        given = (f"nnodes={ranks}", f"inference_server.node_port={port}", *sets)
        self.up_limit_s: float = UP_LIMIT_S
        self._sets = [part for item in given for part in ("--set", item)]

    def __enter__(self) -> LocalStack:
        up = self.run("up", "-s", STACK, "--detach", *self._sets, limit_s=self.up_limit_s)
        if up.returncode:
            self.__exit__()
            raise AssertionError(up.stdout + up.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        self.run("down", "-s", "local", "--now")

    def apply(self, *sets: str, limit_s: float) -> subprocess.CompletedProcess[str]:
        """`splitstack apply` with these changes."""
        more = [part for item in sets for part in ("--set", item)]
        return self.run("apply", "-s", "local", *more, limit_s=limit_s)

    def run(self, *arguments: str, limit_s: float = 60) -> subprocess.CompletedProcess[str]:
        """`splitstack` with these arguments."""
        return subprocess.run(
            [sys.executable, "-m", "infra.cli", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        """As `splitstack status` tells."""
        found: dict[str, Any] = json.loads(self.run("status", "-s", "local", "--json").stdout)
        return found

    def processes(self) -> dict[str, dict[str, Any]]:
        """By name."""
        return {row["name"]: row for row in self.status()["processes"]}

    def kill(self, name: str) -> None:
        os.kill(self.processes()[name]["pid"], signal.SIGKILL)

    def log(self, name: str) -> list[str]:
        return Path(self.processes()[name]["log"]).read_text("utf-8").splitlines()
