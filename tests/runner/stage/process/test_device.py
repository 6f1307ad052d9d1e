"""What a stage asks of its GPU besides computing.

No GPU has run this: what torch says is put in.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from contract.specs import GroupSpec, RankPart, StageSpec
from runner.errors import RunnerError
from runner.models.progress import FetchProgress
from runner.stage.__main__ import keep_gpu_memory_in_one_piece, let_waiting_threads_sleep
from runner.stage.process.device import Cpu, Cuda
from runner.stage.process.health import DEVICE_GAUGES
from runner.stage.process.load import prepare
from runner.transport.control import Prepare

PLACE = torch.device("cuda:1")


@pytest.fixture
def cudnn() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.usefixtures("cudnn")
def test_cudnns_attention_is_off_before_anything_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", asked.append)
    Cuda(PLACE).begin()
    assert asked == [PLACE]
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    Cpu().begin()
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.usefixtures("cudnn")
def test_a_device_that_cannot_be_used_is_told_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def gone(_place: torch.device) -> NoReturn:
        raise RuntimeError("CUDA error: no CUDA-capable device is detected")

    monkeypatch.setattr(torch.cuda, "mem_get_info", gone)
    stage = StageSpec("d", 0, device="cuda:1", model_cache=str(tmp_path))
    spec = GroupSpec("d", "org/a-model-that-nobody-has", (RankPart((0, 4)),))
    with pytest.raises(RunnerError) as raised:
        prepare(stage, Prepare(spec, "", 1, in_force=True), FetchProgress())
    assert str(raised.value) == (
        "rank 0: its device cuda:1 cannot be used: CUDA error: no CUDA-capable device is detected"
    )
    assert not list(tmp_path.iterdir())


def test_figures_are_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Cpu().figures() == {}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert Cuda(PLACE).figures() == {}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _place: (3, 10))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _place: 5)
    monkeypatch.setattr(torch.cuda, "utilization", lambda _place: 90)
    assert dict(zip(DEVICE_GAUGES, (10, 7, 5, 90), strict=True)) == Cuda(PLACE).figures()

    def without(_place: torch.device) -> NoReturn:
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "utilization", without)
    assert list(Cuda(PLACE).figures()) == list(DEVICE_GAUGES)[:3]

    def broken(_place: torch.device) -> NoReturn:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    assert Cuda(PLACE).figures() == {}


MEMORY = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
THREADS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    ("choose", "names", "given", "expected"),
    [
        (keep_gpu_memory_in_one_piece, MEMORY, {}, "expandable_segments:True"),
        (keep_gpu_memory_in_one_piece, MEMORY, {MEMORY[0]: "backend:native"}, "backend:native"),
        (keep_gpu_memory_in_one_piece, MEMORY, {MEMORY[1]: "backend:native"}, None),
        (let_waiting_threads_sleep, THREADS, {}, "10000"),
        (let_waiting_threads_sleep, THREADS, {THREADS[0]: "7"}, "7"),
        (let_waiting_threads_sleep, THREADS, {THREADS[1]: "ACTIVE"}, None),
    ],
)
def test_what_torch_reads_is_chosen_unless_somebody_says_how(
    monkeypatch: pytest.MonkeyPatch,
    choose: Callable[[], None],
    names: tuple[str, str],
    given: dict[str, str],
    expected: str | None,
) -> None:
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    choose()
    assert os.environ.get(names[0]) == expected


def test_torch_reads_how_soon_they_sleep() -> None:
    code = "import runner.stage.__main__ as it; it.let_waiting_threads_sleep(); import torch"
    environment = {**os.environ, "OMP_DISPLAY_ENV": "verbose"}
    environment.pop("OMP_WAIT_POLICY", None)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "GOMP_SPINCOUNT = '10000'" in done.stderr
