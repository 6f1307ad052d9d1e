"""A rank group in real processes, for tests that break it."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from contract.specs import GroupSpec, MasterSpec, RankPart, StageSpec, render
from tests.waiting import free_ports, wait_for

MASTER = -1


class RankGroup:
    """The master and one stage per entry of `layers`. `start`, `kill` and `restart` take a rank,
    MASTER for the master. Extra keywords go into the GroupSpec; `advertise` maps a rank to the
    address it announces and `reach_master` is where the stages look for the master."""

    def __init__(
        self,
        model: str,
        layers: list[tuple[int, int]],
        state: Path,
        *,
        advertise: dict[int, str] | None = None,
        reach_master: str = "127.0.0.1",
        **settings: Any,
    ) -> None:
        ports = free_ports(2 + 2 * len(layers))
        self.master_spec = MasterSpec(
            "fault", bind_address="127.0.0.1", master_port=ports[0], http_port=ports[1]
        )
        self.stage_specs = [
            StageSpec(
                "fault",
                rank,
                master_host=reach_master,
                master_port=ports[0],
                bind_address="127.0.0.1",
                threads=1,
                memory_bytes=4 * 2**30,
                data_port=ports[2 + 2 * rank],
                health_port=ports[3 + 2 * rank],
                advertise_address=(advertise or {}).get(rank, ""),
            )
            for rank in range(len(layers))
        ]
        self.spec = GroupSpec(
            deployment_name="fault",
            model_name=model,
            ranks=tuple(RankPart(bounds) for bounds in layers),
            dtype="float32",
            max_model_len=1024,
            **settings,
        )
        self.state = state
        (state / "master.json").write_text(render(self.master_spec))
        (state / "group.json").write_text(render(self.spec))
        for spec in self.stage_specs:
            (state / f"stage-{spec.rank}.json").write_text(render(spec))
        (state / "token").write_text(secrets.token_hex(32))
        self.url = f"http://127.0.0.1:{ports[1]}"
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, rank: int) -> None:
        if rank == MASTER:
            command = ["runner.master", "--group-spec", str(self.state / "group.json")]
            spec = "master.json"
        else:
            command, spec = ["runner.stage"], f"stage-{rank}.json"
        files = ["--spec", str(self.state / spec), "--token-file", str(self.state / "token")]
        with self.log(rank).open("ab") as log:
            self.processes[rank] = subprocess.Popen(
                [sys.executable, "-m", *command, *files], stdout=log, stderr=log
            )

    def start_all(self) -> None:
        for rank in (MASTER, *range(len(self.spec.ranks))):
            self.start(rank)
        self.wait_ready(120)

    def log(self, rank: int) -> Path:
        return self.state / ("master.log" if rank == MASTER else f"stage-{rank}.log")

    def signal(self, rank: int, number: signal.Signals) -> None:
        self.processes[rank].send_signal(number)

    def kill(self, rank: int) -> None:
        self.signal(rank, signal.SIGKILL)
        self.processes[rank].wait(10)

    def restart(self, rank: int) -> None:
        """What a kubelet does with a process that is dead or does not answer."""
        self.kill(rank)
        self.start(rank)

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def wait_ready(self, limit_s: float) -> None:
        try:
            wait_for(self.ready, limit_s, "the group is ready")
        except AssertionError as error:
            logs = [self.log(rank).read_text()[-2000:] for rank in sorted(self.processes)]
            raise AssertionError(f"{error}\n" + "\n".join(logs)) from None

    def topology(self) -> dict[str, Any]:
        document: dict[str, Any] = httpx.get(f"{self.url}/topology").json()
        return document

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.kill(process.pid, signal.SIGCONT)
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
