"""Stages in real processes, and a master in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx

from contract.specs import GroupSpec, MasterSpec, RankPart, StageSpec, render
from runner.errors import RunnerError
from runner.master.group.formation import Formation
from runner.master.group.group import Group
from runner.sampling_parameters import SamplingParameters
from runner.steps import Admission, Segment, Step, StepResult
from runner.transport.control import Served
from tests.waiting import PATIENCE_S, free_ports

_DEADLY = """
import os, sys
import runner.stage.__main__ as stage
from runner.stage.process.compute_loop import ComputeLoop

compute = ComputeLoop._compute

def deadly(self, arrival, *times):
    if {token_id} in list(arrival.frame.step.token_ids):
        os._exit(70)
    return compute(self, arrival, *times)

ComputeLoop._compute = deadly
sys.exit(stage.main())
"""
GREEDY = SamplingParameters(temperature=0)


class Recorder:
    """A group's listener that keeps what it is told."""

    def __init__(self) -> None:
        self.formations: list[Formation] = []
        self.results: asyncio.Queue[StepResult] = asyncio.Queue()
        self.losses: list[str] = []
        self.announced: list[bool] = []

    def group_formed(self, formation: Formation) -> None:
        self.formations.append(formation)

    def step_returned(self, result: StepResult) -> None:
        self.results.put_nowait(result)

    def group_lost(self, reason: str, *, announced: bool) -> None:
        self.losses.append(reason)
        self.announced.append(announced)

    def requests_wait(self, waits: bool) -> None:
        """There are none."""

    def must_be_waited_for(self, in_time: bool) -> bool:
        return False

    def end_open(self, error: RunnerError) -> None:
        """There are none."""

    def take(self, served: Served) -> None:
        """Nothing depends on it."""


class Master:
    """A group, its recorder, and greedy decoding by hand."""

    def __init__(self, group: Group, recorder: Recorder) -> None:
        self.group, self.recorder = group, recorder
        self._step = 0

    async def until(
        self, condition: Callable[[], object], what: str, limit_s: float = PATIENCE_S
    ) -> float:
        """Poll; seconds that it took; AssertionError with the group's state after `limit_s`."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > limit_s:
                state = f"{self.group.state}: {self.group.reason}"
                raise AssertionError(f"{what}: not within {limit_s} s; the group is {state}")
            await asyncio.sleep(0.01)
        return time.monotonic() - began

    async def until_formed(self) -> Formation:
        count = len(self.recorder.formations)
        if self.group.state != "ready":
            await self.until(lambda: len(self.recorder.formations) > count, "formed")
        return self.recorder.formations[-1]

    async def until_lost(self, limit_s: float) -> None:
        await self.until(lambda: self.group.state != "ready", "lost", limit_s)

    async def step(
        self,
        segments: tuple[Segment, ...],
        token_ids: tuple[int, ...],
        admissions: tuple[Admission, ...] = (),
        releases: tuple[int, ...] = (),
    ) -> StepResult:
        self._step += 1
        self.group.submit(Step(self._step, segments, token_ids, admissions, releases))
        return await asyncio.wait_for(self.recorder.results.get(), PATIENCE_S)

    async def generate(self, request: int, prompt: tuple[int, ...], count: int) -> list[int]:
        """Greedy: the prompt in two chunks, then one token a step."""
        size, cut = len(prompt), len(prompt) // 2
        admission = Admission(request, size + count, size, 0, 1, GREEDY)
        chunk = Segment(request, 0, cut, size, False)
        result = await self.step((chunk,), prompt[:cut], (admission,))
        assert result.tokens == ()
        chunk = Segment(request, cut, size - cut, size, True)
        result = await self.step((chunk,), prompt[cut:])
        ids = [result.tokens[0].token_id]
        while len(ids) < count:
            position = size + len(ids) - 1
            segment = Segment(request, position, 1, position + 1, True)
            result = await self.step((segment,), (ids[-1],))
            ids.append(result.tokens[0].token_id)
        await self.step((), (), releases=(request,))
        return ids


class Stages:
    """One process per entry of `layers`, and `spare` ones without a part. Extra keywords go into
    the GroupSpec; `advertise` maps a rank to the address that it announces."""

    def __init__(
        self,
        model: str,
        layers: list[tuple[int, int]],
        state: Path,
        *,
        advertise: dict[int, str] | None = None,
        master_host: str = "127.0.0.1",
        spare: int = 0,
        memory_bytes: int = 2 * 10**9,
        **settings: object,
    ) -> None:
        processes = len(layers) + spare
        ports = free_ports(2 + 2 * processes)
        self.master_spec = MasterSpec(
            "stages", bind_address="127.0.0.1", master_port=ports[0], http_port=ports[1]
        )
        self.stage_specs = [
            StageSpec(
                "stages",
                rank,
                master_host=master_host,
                master_port=ports[0],
                bind_address="127.0.0.1",
                threads=1,
                memory_bytes=memory_bytes,
                data_port=ports[2 + 2 * rank],
                health_port=ports[3 + 2 * rank],
                advertise_address=(advertise or {}).get(rank, ""),
            )
            for rank in range(processes)
        ]
        fields = {"dtype": "float32", "request_deadline_s": 60.0}
        self.spec = GroupSpec(
            "stages",
            model,
            tuple(RankPart(bounds) for bounds in layers),
            **(fields | settings),  # type: ignore[arg-type]
        )
        self.state = state
        self.token = secrets.token_hex(16).encode()
        for spec in self.stage_specs:
            self._write(self.spec_file(spec.rank).name, render(spec))
        self.token_file = self._write("token", self.token.decode())
        self.module = "runner.stage"
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def spec_file(self, rank: int) -> Path:
        return self.state / f"stage-{rank}.json"

    def _write(self, name: str, text: str) -> Path:
        path = self.state / name
        path.write_text(text)
        return path

    def launch(self, rank: int, *, token_file: Path | None = None) -> subprocess.Popen[bytes]:
        """A stage's process; its log is appended to stage-RANK.log."""
        command = [sys.executable, "-m", self.module]
        command += ["--spec", str(self.spec_file(rank))]
        command += ["--token-file", str(token_file or self.token_file)]
        with (self.state / f"stage-{rank}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def start_deadly(self, rank: int, token_id: int) -> None:
        """A stage whose process ends at once when it is to compute a step with `token_id`."""
        self.start_program(rank, _DEADLY.format(token_id=token_id))

    def start_program(self, rank: int, program: str) -> None:
        """A stage's process that runs this instead of `python -m runner.stage`."""
        command = [sys.executable, "-c", program]
        command += ["--spec", str(self.spec_file(rank)), "--token-file", str(self.token_file)]
        with (self.state / f"stage-{rank}.log").open("ab") as log:
            self.processes[rank] = subprocess.Popen(command, stdout=log, stderr=log)

    async def keep_alive(self, rank: int, start: Callable[[], None]) -> None:
        """What a kubelet does with a process that ends."""
        while True:
            if self.processes[rank].poll() is not None:
                start()
            await asyncio.sleep(0.05)

    def start(self, *ranks: int) -> None:
        for rank in ranks or range(len(self.stage_specs)):
            self.processes[rank] = self.launch(rank)

    def signal(self, rank: int, number: signal.Signals) -> None:
        self.processes[rank].send_signal(number)

    def restart(self, rank: int) -> None:
        """What a kubelet does with a process that is dead or does not answer."""
        self.processes[rank].kill()
        self.processes[rank].wait(60)
        self.start(rank)

    def process_ids(self) -> dict[int, int]:
        return {rank: process.pid for rank, process in self.processes.items()}

    def log(self, rank: int) -> str:
        return (self.state / f"stage-{rank}.log").read_text()

    def health(self, rank: int, path: str, timeout_s: float = PATIENCE_S) -> httpx.Response:
        url = f"http://127.0.0.1:{self.stage_specs[rank].health_port}{path}"
        return httpx.get(url, timeout=timeout_s)

    def group(self, **changes: Any) -> Group:
        """A new master's."""
        return Group(self.master_spec, self.token, self.spec, **changes)

    @contextlib.asynccontextmanager
    async def master(self) -> AsyncIterator[Master]:
        """One life of a master; the stages outlive it."""
        recorder = Recorder()
        group = self.group()
        await group.start(recorder)
        try:
            yield Master(group, recorder)
        finally:
            await group.stop()

    def end(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.kill(process.pid, signal.SIGCONT)
                process.kill()
            process.wait(60)
