"""The parts of the acceptance on a GPU, on a CPU and with tiny sizes: they find what is wrong."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_checks, gpu_decode
from benchmarks.gpu_checks import Sizes, admissions_fit
from runner.stage.model import attention_by_request
from runner.stage.model.kv_pool import KVPool, Slot

CPU = torch.device("cpu")
TINY = Sizes(
    hidden=32,
    intermediate=48,
    layers=2,
    heads=4,
    kv_heads=2,
    vocabulary=100,
    context=20,
    rows=(1, 3),
    steps=4,
    admissions=60,
    positions=300,
    copied_bytes=2**16,
    dtype=torch.float32,
)


@pytest.fixture(autouse=True)
def no_marks_of_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_decode, "LEAST_SHARES", {})


def test_all_that_is_looked_at_is_right_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = list(gpu.look(CPU, TINY, tmp_path, lambda: 0.0))
    assert [finding.what for finding in findings if not finding.passed] == []
    assert len(findings) == 1 + 6 + 1 + (1 + 2 * 2 + 1 + 2)
    assert len(capsys.readouterr().out.splitlines()) == len(findings)
    json.dumps([asdict(finding) for finding in findings])


def test_wrong_attention_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention_by_request.attend_by_request

    def wrong(query: torch.Tensor, *others: object) -> torch.Tensor:
        result = right(query, *others)  # type: ignore[arg-type]
        return result * 1.02 if query.dtype == torch.float32 else result

    monkeypatch.setattr(attention_by_request, "attend_by_request", wrong)
    assert not any(finding.passed for finding in gpu_checks.attention_is_right(CPU, TINY))


def test_a_slot_that_is_lost_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(_: KVPool, slot: Slot, start: int, _spare: torch.Tensor) -> None:
        slot.start = start

    monkeypatch.setattr(KVPool, "_move", forget)
    assert not admissions_fit(CPU, TINY).passed


def test_slow_steps_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_decode, "LEAST_SHARES", {3: 1e9})
    folder = gpu_checks.make_model(tmp_path / "model", CPU, TINY)
    findings = list(gpu_decode.decode_findings(CPU, TINY, folder, 1e9))
    assert [finding.what.partition(",")[0] for finding in findings if not finding.passed] == [
        "decode of 3 rows with graphs"
    ]


def test_what_has_no_time_left_is_missed(tmp_path: Path) -> None:
    findings = list(gpu.look(CPU, TINY, tmp_path, lambda: gpu.LIMIT_S + 1.0))
    assert len(findings) == 4
    assert not any(finding.passed for finding in findings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main() == 2
    assert capsys.readouterr().out.splitlines() == [
        "benchmarks.gpu: torch sees no GPU here, and there is nothing to measure without one"
    ]
