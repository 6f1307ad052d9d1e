"""Every architecture's forward on a CUDA device that is none: its tensors have shapes and a place.

What would have to wait for the device (a value that the host looks at, a shape that hangs on one)
fails here, and so does what mixes tensors of two devices. Kernels and times only a GPU can show.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from runner.sampling_parameters import SamplingParameters
from runner.stage.model import attention
from runner.stage.model.attention_kind import AttentionKind, attention_kind
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.decode_graphs import DecodeGraphs, compute_again
from runner.stage.model.stage_model import StageModel
from runner.steps import Admission, Segment, Step
from tests.small_models import (
    ARCHITECTURES,
    FURTHER_ARCHITECTURES,
    LAYERS,
    OF_EACH_KIND,
    ROPE_BOUNDARY,
    make_small_model,
)

PLACE = torch.device("cuda:0")
SAMPLING = SamplingParameters(temperature=0)
LONG = ROPE_BOUNDARY + 8
# Capped scores, and values that are smaller than keys: computed one request after the other.
BY_REQUEST = ("gemma2", "vaultgemma", "deepseek_v2", "deepseek_v3", "minicpm3", "youtu")


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> set[AttentionKind]:
    """What is chosen on a Hopper; experts ask for it too, before they multiply in groups."""
    found: set[AttentionKind] = set()

    def noted(*arguments: Any) -> AttentionKind:
        kind = attention_kind(*arguments)
        found.add(kind)
        return kind

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(attention, "attention_kind", noted)
    return found


def put_on_fake_cuda(stage: StageModel) -> None:
    """What `load` does with a device that is there, within a FakeTensorMode."""
    done: dict[int, torch.Tensor] = {}
    for module in stage._model.modules():
        for kept in (module._parameters, module._buffers):
            for name, tensor in kept.items():
                if tensor is None:
                    continue
                if id(tensor) not in done:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=PLACE)
                    if kept is module._parameters:
                        fake = nn.Parameter(fake, requires_grad=False)
                    done[id(tensor)] = fake
                kept[name] = done[id(tensor)]
    stage._device = stage._pool.device = PLACE


def steps() -> Iterator[Step]:
    """Prompts whole and in chunks, short beside long, a beginning that is another's, decodes."""

    def admission(request: int, prompt: int, donor: int = 0, reused: int = 0) -> Admission:
        return Admission(request, LONG + 20, prompt, 0, 0, SAMPLING, donor=donor, reused=reused)

    def step(*segments: Segment, admissions: tuple[Admission, ...] = ()) -> Step:
        return Step(1, segments, [1] * sum(item.length for item in segments), admissions)

    yield step(
        Segment(1, 0, 20, 20, True, 19, 1),
        Segment(2, 0, 30, LONG, False),
        admissions=(admission(1, 20), admission(2, LONG)),
    )
    yield step(
        Segment(1, 20, 1, 21, True),
        Segment(2, 30, LONG - 30, LONG, True),
        Segment(3, 18, 2, 20, True),
        admissions=(admission(3, 20, donor=1, reused=18),),
    )
    for place in range(2):
        yield step(
            Segment(1, 21 + place, 1, 22 + place, True),
            Segment(2, LONG + place, 1, LONG + 1 + place, True),
        )
    yield step(Segment(2, LONG + 2, 1, LONG + 3, True))


def compute(stages: list[StageModel]) -> None:
    for step in steps():
        hidden = None
        for stage in stages:
            for admission in step.admissions:
                stage.admit(admission)
            hidden = stage.forward(step, hidden)
            assert hidden.device == PLACE
            if not stage.is_last:
                hidden = torch.empty(hidden.shape, dtype=hidden.dtype)  # as the link brings it
        assert hidden is not None
        assert hidden.shape == (step.sampled_rows, stages[-1].vocab_size)
        if step.scored_rows:
            with closing(stages[-1].scored_logits(step)) as parts:
                assert all(part.device == PLACE for part in parts)


def check(architecture: str, folder: Path, kinds: set[AttentionKind]) -> None:
    make_small_model(architecture, folder)
    checkpoint = Checkpoint(folder)
    stages = [
        StageModel.load(checkpoint, bounds, dtype="bfloat16", pack=False)
        for bounds in ((0, 2), (2, LAYERS))
    ]
    with FakeTensorMode():
        for stage in stages:
            put_on_fake_cuda(stage)
        compute(stages)
        for stage in stages:
            if stage.rope_boundary is None:
                stage._graphs = DecodeGraphs(stage._compute, stage._pool, compute_again)
        compute(stages)
    by_request = architecture in BY_REQUEST
    assert kinds == {AttentionKind.BY_REQUEST if by_request else AttentionKind.FLASH}


@pytest.mark.parametrize(
    "architecture",
    [
        *OF_EACH_KIND,
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ARCHITECTURES
            if name not in OF_EACH_KIND
        ),
    ],
)
def test_a_forward_waits_for_nothing_and_stays_on_its_device(
    architecture: str, tmp_path: Path, kinds: set[AttentionKind]
) -> None:
    check(architecture, tmp_path, kinds)


@pytest.mark.long
@pytest.mark.parametrize("architecture", FURTHER_ARCHITECTURES)
def test_further_ones_too(architecture: str, tmp_path: Path, kinds: set[AttentionKind]) -> None:
    check(architecture, tmp_path, kinds)


def test_the_check_finds_what_it_is_for() -> None:
    with FakeTensorMode():
        there = torch.ones(3, device=PLACE)
        with pytest.raises(DataDependentOutputException):
            there[0].item()
        with pytest.raises(DataDependentOutputException):
            bool(there.any())
        with pytest.raises((DataDependentOutputException, RuntimeError)):
            there.tolist()
        with pytest.raises(DynamicOutputShapeException):
            there.nonzero()
        with pytest.raises(RuntimeError, match=r"[Dd]evice"):
            there + torch.ones(3)
