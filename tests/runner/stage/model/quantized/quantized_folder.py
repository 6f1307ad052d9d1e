"""Small models whose tensors a test quantizes, and what a split of them computes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from runner.sampling_parameters import SamplingParameters
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel
from runner.steps import Admission, Segment, Step
from tests.small_models import LAYERS, make_small_model

FILE = "model.safetensors"
PROMPT = list(range(1, 12))
Tensors = dict[str, torch.Tensor]


def quantized_folder(
    folder: Path,
    architecture: str,
    config: dict[str, Any],
    quantize: Callable[[str, torch.Tensor], Tensors],
    **changes: Any,
) -> Path:
    """A model in one file, in which `quantize(name, weight)` stands for each matrix within a layer
    that is no norm or router, and `config` in config.json."""
    make_small_model(architecture, folder / "sharded", **changes).save_pretrained(folder)
    tensors: Tensors = {}
    for name, tensor in load_file(folder / FILE).items():
        is_matrix = tensor.dim() > 1 and ".layers." in name and "gate.weight" not in name
        tensors |= quantize(name, tensor) if is_matrix else {name: tensor}
    save_file(tensors, folder / FILE, {"format": "pt"})
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"quantization_config": config}))
    return folder


def changed(folder: Path, changes: dict[str, torch.Tensor | None]) -> Path:
    """Other tensors, or without those that are None."""
    tensors = load_file(folder / FILE) | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / FILE, {"format": "pt"})
    return folder


def whole_folder(quantized: Path, folder: Path, tensors: Tensors) -> Path:
    """The same model with these tensors, and a config.json that says nothing of quantization."""
    folder.mkdir()
    described = json.loads((quantized / "config.json").read_text())
    del described["quantization_config"]
    (folder / "config.json").write_text(json.dumps(described))
    save_file(tensors, folder / FILE, {"format": "pt"})
    return folder


def dequantized_by_transformers(quantized: Path, folder: Path, config: Any) -> Path:
    """As transformers' own loading dequantizes it, saved whole."""
    read = AutoModelForCausalLM.from_pretrained(
        quantized, quantization_config=config, dtype=torch.float32
    )
    vars(read.config).pop("quantization_config", None)
    model = type(read)(read.config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(folder: Path, ranks: int, dtype: str = "float32") -> torch.Tensor:
    """[1, vocabulary] after PROMPT, of the layers split evenly over `ranks`."""
    length = len(PROMPT)
    borders = [LAYERS * rank // ranks for rank in range(ranks + 1)]
    result: torch.Tensor | None = None
    for pair in itertools.pairwise(borders):
        stage = StageModel.load(Checkpoint(folder), pair, dtype=dtype)
        stage.admit(Admission(0, length + 1, length, 0, 0, SamplingParameters(temperature=0)))
        step = Step(0, (Segment(0, 0, length, length, True),), PROMPT)
        result = stage.forward(step, result)
    assert result is not None
    return result
