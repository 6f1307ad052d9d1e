"""What the serving benchmark compares, each resident in processes of its own, idle in turn."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from contract.specs import AnySpec, GroupSpec, MasterSpec, RankPart, StageSpec, render

READY_LIMIT_S = 300.0
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Outcome:
    """One measured batch of concurrent requests."""

    seconds: float
    tokens: int
    failures: int


class Engine(Protocol):
    name: str

    def run(self, prompts: list[list[int]], new_tokens: list[int]) -> Outcome:
        """Generate so many greedy tokens for each prompt, all at the same time."""

    def stop(self) -> None: ...


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Splitstack:
    """A rank group of ours behind the master's HTTP API."""

    def __init__(
        self,
        folder: Path,
        layers: list[tuple[int, int]],
        threads: int,
        state: Path,
        dtype: str = "float32",
    ) -> None:
        self.name = f"splitstack-{len(layers)}-rank-{threads}-thread"
        if dtype != "float32":
            self.name += f"-{dtype}"
        ports = free_ports(2 + 2 * len(layers))
        spec = GroupSpec(
            deployment_name=self.name,
            model_name=str(folder),
            ranks=tuple(RankPart(bounds) for bounds in layers),
            dtype=dtype,
            max_model_len=2048,
        )
        master = MasterSpec(
            self.name, bind_address="127.0.0.1", master_port=ports[0], http_port=ports[1]
        )
        stages = [
            StageSpec(
                self.name,
                rank,
                master_port=ports[0],
                bind_address="127.0.0.1",
                threads=threads,
                memory_bytes=5 * 2**30,
                data_port=ports[2 + 2 * rank],
                health_port=ports[3 + 2 * rank],
            )
            for rank in range(len(layers))
        ]
        token_file = state / f"{self.name}.token"
        token_file.write_text(secrets.token_hex(32))

        def written(kind: str, spec: AnySpec) -> str:
            path = state / f"{self.name}.{kind}.json"
            path.write_text(render(spec))
            return str(path)

        self.url = f"http://127.0.0.1:{ports[1]}"
        group = ["--group-spec", written("group", spec)]
        commands = {"master": ["runner.master", "--spec", written("master", master), *group]}
        for stage in stages:
            name = f"stage-{stage.rank}"
            commands[name] = ["runner.stage", "--spec", written(name, stage)]
        self.processes = []
        for name, command in commands.items():
            log = (state / f"{self.name}.{name}.log").open("w")
            command_line = [sys.executable, "-m", *command, "--token-file", str(token_file)]
            self.processes.append(subprocess.Popen(command_line, stdout=log, stderr=log))
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_LIMIT_S
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        self.stop()
        raise TimeoutError(f"{self.name} was not ready after {READY_LIMIT_S:.0f} s")

    def run(self, prompts: list[list[int]], new_tokens: list[int]) -> Outcome:
        return asyncio.run(self._run(prompts, new_tokens))

    async def _run(self, prompts: list[list[int]], new_tokens: list[int]) -> Outcome:
        async with httpx.AsyncClient(
            base_url=self.url, timeout=600, limits=httpx.Limits()
        ) as client:
            start = time.perf_counter()
            answers = await asyncio.gather(
                *(
                    self._complete(client, self.name, prompt, count)
                    for prompt, count in zip(prompts, new_tokens, strict=True)
                )
            )
            seconds = time.perf_counter() - start
        failures = sum(came != asked for came, asked in zip(answers, new_tokens, strict=True))
        return Outcome(seconds, sum(answers), failures)

    @staticmethod
    async def _complete(
        client: httpx.AsyncClient, model: str, prompt: list[int], new_tokens: int
    ) -> int:
        body = {"model": model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0}
        try:
            answer = await client.post("/v1/completions", json=body)
            answer.raise_for_status()
            return int(answer.json()["usage"]["completion_tokens"])
        except httpx.HTTPError:
            return 0

    def topology(self) -> dict[str, Any]:
        document: dict[str, Any] = httpx.get(f"{self.url}/topology", timeout=5).json()
        return document

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


class Transformers:
    """The peer: see transformers_peer.py for its modes."""

    def __init__(self, folder: Path, mode: str, world_size: int, threads: int, state: Path) -> None:
        self.name = f"transformers-{mode}-{world_size}-process-{threads}-thread"
        (port,) = free_ports(1)
        self.processes: list[subprocess.Popen[str]] = []
        for rank in range(world_size):
            environment = os.environ | {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": str(world_size),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "OMP_NUM_THREADS": str(threads),
            }
            arguments = [str(folder), "--mode", mode, "--threads", str(threads)]
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, str(HERE / "transformers_peer.py"), *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=(state / f"{self.name}.{rank}.log").open("w"),
                    text=True,
                    env=environment,
                )
            )
        for process in self.processes:
            self._read(process)

    def _read(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended; see its log")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self, prompts: list[list[int]], new_tokens: list[int]) -> Outcome:
        first = self.processes[0]
        assert first.stdin is not None
        first.stdin.write(json.dumps({"prompts": prompts, "new_tokens": new_tokens}) + "\n")
        first.stdin.flush()
        answer = self._read(first)
        failures = 0 if answer["tokens"] == sum(new_tokens) else len(prompts)
        return Outcome(answer["seconds"], answer["tokens"], failures)

    def stop(self) -> None:
        for process in self.processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
