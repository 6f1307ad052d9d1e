"""The local stack as processes, to be measured."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.engines import free_ports

STACK = Path(__file__).parents[1] / "stacks" / "Pulumi.local.yaml"
BLOCK, DEPLOYMENT = "pytorch-block-3", "local"


class RunningStack:
    """`splitstack up --detach` in a folder of its own; `sets` as of `--set`."""

    def __init__(self, folder: Path, stack: Path = STACK, sets: Sequence[str] = ()) -> None:
        self._folder = folder
        (port,) = free_ports(1)
        all_sets = (f"inference_server.node_port={port}", *sets)
        given = [part for item in all_sets for part in ("--set", item)]
        self._splitstack("up", "-s", str(stack), "--detach", *given)
        status = self.status()
        self.front_url, self.master_url = status["url"], status["master_url"]

    def status(self) -> dict[str, Any]:
        # Its exit code is 1 while the stack is not ready.
        told = self._splitstack("status", "-s", "local", "--json", most=1)
        found: dict[str, Any] = json.loads(told)
        return found

    def apply(self, sets: Mapping[str, str]) -> None:
        """An edit, followed to its end; raises CalledProcessError where it fails."""
        given = [part for path, value in sets.items() for part in ("--set", f"{path}={value}")]
        self._splitstack("apply", "-s", DEPLOYMENT, *given)

    def topology(self) -> dict[str, Any]:
        """What the master tells of itself."""
        found: dict[str, Any] = httpx.get(f"{self.master_url}/topology", timeout=30).json()
        return found

    def stop(self) -> None:
        self._splitstack("down", "-s", "local", "--now")

    def held(self) -> dict[str, dict[str, int]]:
        """Open files and resident bytes of every process."""
        return {
            name: {"files": process.num_fds(), "resident_bytes": process.memory_info().rss}
            for name, process in self.processes().items()
        }

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds of every process and those that it has started, since they began."""
        return {
            name: sum(sum(it.cpu_times()[:2]) for it in (one, *one.children(recursive=True)))
            for name, one in self.processes().items()
        }

    async def open_requests(self) -> int:
        """Running and waiting in the master."""
        document = await asyncio.to_thread(self.topology)
        return int(document["requests_running"]) + int(document["requests_waiting"])

    async def first_tokens(self) -> tuple[float, float]:
        """Seconds to first token, summed by the master, and their number."""
        async with httpx.AsyncClient(base_url=self.master_url) as client:
            text = (await client.get("/metrics")).text
        samples = {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        name = "vllm:time_to_first_token_seconds"
        return samples[f"{name}_sum"], samples[f"{name}_count"]

    def processes(self) -> dict[str, psutil.Process]:
        """Those that run, by name."""
        return {
            row["name"]: psutil.Process(row["pid"])
            for row in self.status()["processes"]
            if row["pid"] is not None
        }

    def _splitstack(self, *arguments: str, most: int = 0) -> str:
        """Standard output; raises CalledProcessError for an exit code above `most`."""
        command = [sys.executable, "-m", "infra.cli", *arguments]
        done = subprocess.run(
            command, cwd=self._folder, capture_output=True, text=True, check=False, timeout=600
        )
        if done.returncode > most:
            print(done.stderr, file=sys.stderr)
            done.check_returncode()
        return done.stdout
