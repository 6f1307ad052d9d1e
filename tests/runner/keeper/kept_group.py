"""A group of keepers as real processes, on engines of tests/runner/keeper/small_engine.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from contract.signature import signing_key
from contract.specs import GroupSpec, KeeperSpec, RankPart, render, spec_hash
from rollout.group import Group
from tests.runner.keeper import small_engine
from tests.waiting import free_ports, wait_for

DEPLOYMENT = "kept"
LAYERS = 4
TOKEN = b"0123456789abcdef0123456789abcdef"


def save_model(folder: Path, **changes: Any) -> Path:
    """A folder that passes for a model."""
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


class KeptGroup:
    """`ranks` keepers; `environment` is their engines'."""

    def __init__(self, folder: Path, ranks: int = 2, **changes: Any) -> None:
        self.folder, self.ranks = folder, ranks
        self.told = folder / "told"
        self.told.mkdir(parents=True)
        self.model = save_model(folder / "model")
        self._token = folder / "token"
        self._token.write_bytes(TOKEN)
        self.served = folder / "group.json"
        self.spec = self.spec_of(self.model)
        self.served.write_text(render(self.spec))
        self._changes = changes
        ports = free_ports(4 + ranks)
        self._group_port, self._engine_port, self._meeting_port, *self._http = ports
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.url = f"http://127.0.0.1:{self._http[0]}"
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        program = folder / "vllm"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {small_engine.__file__} "$@"\n')
        program.chmod(0o755)
        self._program = program

    def spec_of(self, model: Path, **changes: Any) -> GroupSpec:
        size = LAYERS // self.ranks
        parts = tuple(RankPart((rank * size, (rank + 1) * size)) for rank in range(self.ranks))
        values = {"request_deadline_s": 60.0, **changes}
        return GroupSpec(DEPLOYMENT, str(model), parts, **values)

    def start(self, rank: int, token: bytes = TOKEN) -> subprocess.Popen[bytes]:
        spec = KeeperSpec(
            DEPLOYMENT,
            rank,
            master_port=self._group_port,
            bind_address="127.0.0.1",
            http_port=self._http[rank],
            engine_port=self._engine_port,
            meeting_port=self._meeting_port,
            engine=str(self._program),
            **self._changes,
        )
        file = self.folder / f"keeper-{rank}.json"
        file.write_text(render(spec))
        secret = self.folder / f"token-{rank}"
        secret.write_bytes(token)
        command = [sys.executable, "-m", "runner.keeper", "--spec", str(file)]
        command += ["--group-spec", str(self.served), "--token-file", str(secret)]
        log = (self.folder / f"keeper-{rank}.log").open("ab")
        process = subprocess.Popen(
            command, env={**os.environ, "SMALL_ENGINE": str(self.told)}, stdout=log, stderr=log
        )
        self._processes[rank] = process
        return process

    def start_all(self) -> None:
        for rank in range(self.ranks):
            self.start(rank)

    def keeper(self, rank: int) -> subprocess.Popen[bytes]:
        return self._processes[rank]

    def log(self, rank: int) -> str:
        return (self.folder / f"keeper-{rank}.log").read_text()

    def readyz(self) -> dict[str, Any]:
        try:
            return self.client.get("/readyz").json()
        except (httpx.HTTPError, ValueError):
            return {"ready": False}

    def wait_ready(self, after: int = 0) -> int:
        """The epoch, of a counter beyond `after`."""

        def epoch() -> int:
            topology = self.topology() if self.readyz()["ready"] else {}
            found = topology.get("epoch") or 0
            return found if topology.get("ready") and found > after else 0

        return wait_for(epoch, what=f"ready: {self.readyz()}")

    def topology(self) -> dict[str, Any]:
        try:
            return self.client.get("/topology").json()
        except httpx.HTTPError:
            return {}

    def tell(self, what: str) -> None:
        (self.told / what).touch()

    def untell(self, what: str) -> None:
        (self.told / what).unlink()

    def engines(self, rank: int | None = None) -> list[int]:
        """Processes of engines that live, grandchildren too, and the engine itself first."""
        try:
            rows = [line.split() for line in (self.told / "pids").read_text().splitlines()]
        except FileNotFoundError:
            return []
        pids = [int(pid) for of, pid in rows if rank in (None, int(of))]
        return [pid for pid in pids if _lives(pid)]

    def shared(self) -> list[Path]:
        """What engines have in /dev/shm."""
        pids = {line.split()[1] for line in (self.told / "pids").read_text().splitlines()}
        return [path for path in Path("/dev/shm").glob("small-engine-*") if path.name[13:] in pids]

    def asked(self) -> list[dict[str, Any]]:
        """What was asked of any engine."""
        return [json.loads(line) for line in (self.told / "asked").read_text().splitlines()]

    def push(self, spec: GroupSpec) -> None:
        """Hand over another spec, signed, and wait until it serves."""
        group = Group(self.url, signing_key(TOKEN))
        try:
            group.hand_over(spec)
            wait_for(lambda: group.state().serves(spec_hash(spec)), what="the pushed spec serves")
        finally:
            group.close()

    def close(self) -> None:
        self.client.close()
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def streamed(
    group: KeptGroup, path: str, body: dict[str, Any], **headers: str
) -> Iterator[dict[str, Any] | str]:
    """Its events as documents, and its comment lines of ids as text."""
    with group.client.stream(
        "POST", path, json={**body, "stream": True}, headers=headers
    ) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith(": carry"):
                yield line
            elif line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


def stop(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(pid, number)
