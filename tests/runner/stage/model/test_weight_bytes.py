"""What the plan says that a rank's weights take, what its stage holds, and the process's memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from contract.specs import GroupSpec, RankPart, StageSpec
from infra.plan.layers import RankResources, plan_layers
from infra.plan.model_families import FAMILIES
from infra.plan.model_shape import ModelShape, model_shape
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel
from runner.stage.process.device import Cpu
from runner.stage.process.kv_room import kv_tokens
from tests.small_models import (
    ARCHITECTURES,
    FURTHER_ARCHITECTURES,
    LAYERS,
    VOCABULARY,
    make_small_model,
)

LISTED = sorted((ARCHITECTURES.keys() | FURTHER_ARCHITECTURES.keys()) & FAMILIES.keys())
MEMORY = 2 * 10**9
ON_CPU = RankResources(MEMORY, packs=True)
MEASURE = """
import sys
from pathlib import Path
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def load(folder, first, end):
    return StageModel.load(Checkpoint(Path(folder)), (int(first), int(end)))

small, large, first, end = sys.argv[1:]
kept = load(small, first, end)  # what comes with the first model of a kind
before = resident()
stage = load(large, first, end)
print(resident() - before, stage.weight_bytes)
"""


def shape_of(folder: Path) -> ModelShape:
    return model_shape(json.loads((folder / "config.json").read_text("utf-8")))


@pytest.mark.parametrize("architecture", LISTED)
def test_planned_bytes_are_those_held(architecture: str, tmp_path: Path) -> None:
    make_small_model(architecture, tmp_path)
    shape = shape_of(tmp_path)
    assert shape.exact
    for ranks in (1, 2, 3, 4):
        for rank in plan_layers(shape, [ON_CPU] * ranks, "float32", None):
            stage = StageModel.load(Checkpoint(tmp_path), rank.layers)
            assert stage.weight_bytes == rank.weight_bytes, f"rank {rank.rank} of {ranks}"
            assert stage.kv_bytes_per_token == rank.kv_bytes_per_token
            parts = (RankPart(rank.layers),) * (rank.rank + 1)
            held = StageSpec("d", rank.rank, memory_bytes=MEMORY)
            tokens = kv_tokens(held, GroupSpec("d", "m", parts), stage, Cpu(), 1)
            assert tokens == rank.kv_budget_tokens


def test_every_listed_architecture_is_compared() -> None:
    assert set(LISTED) == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_the_process_holds_no_more_than_is_said(rank: int, tmp_path: Path) -> None:
    """A tied embedding of 82 MB: the last rank's is its head, and there once."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "tie_word_embeddings": True}
    make_small_model("llama", tmp_path / "small", tie_word_embeddings=True)
    make_small_model("llama", tmp_path / "large", vocab_size=250 * VOCABULARY, **sizes)
    layers = [(0, LAYERS // 2), (LAYERS // 2, LAYERS)][rank]
    planned = plan_layers(
        shape_of(tmp_path / "large"),
        [RankResources(layers=(0, 2), packs=True), RankResources(layers=(2, 4), packs=True)],
        "float32",
        None,
    )[rank]
    arguments = [str(tmp_path / "small"), str(tmp_path / "large"), *map(str, layers)]
    command = [sys.executable, "-c", MEASURE, *arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    grown, said = (int(word) for word in output.split())
    assert said == planned.weight_bytes
    assert abs(grown - said) < 0.1 * said
