"""gpt-oss' experts as they are published."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import Mxfp4Config

from runner.errors import UnsupportedModel
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel
from tests.runner.stage.model.quantized.quantized_folder import (
    changed,
    dequantized_by_transformers,
    logits,
    quantized_folder,
)

CONFIG = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
UP = "model.layers.1.mlp.experts.gate_up_proj"


def of_any_content(name, weight):
    """All bytes, and exponents around those of small weights."""
    if not name.endswith(("gate_up_proj", "down_proj")):
        return {name: weight}
    experts, inputs, outputs = weight.shape
    blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
    scales = torch.randint(122, 127, (experts, outputs, inputs // 32), dtype=torch.uint8)
    return {f"{name}_blocks": blocks, f"{name}_scales": scales}


@pytest.fixture
def folder(tmp_path):
    return quantized_folder(tmp_path / "mxfp4", "gpt_oss", CONFIG, of_any_content)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_experts_equal_transformers_own_dequantizing(dtype, folder, tmp_path):
    whole = dequantized_by_transformers(folder, tmp_path / "whole", Mxfp4Config(dequantize=True))
    for ranks in (1, 2):
        assert torch.equal(logits(folder, ranks, dtype), logits(whole, ranks, dtype))


@pytest.mark.parametrize(
    ("end", "tensor", "told"),
    [
        ("_scales", None, f"{UP}_blocks is there without {UP}_scales"),
        ("_blocks", None, f"{UP}_scales is there without {UP}_blocks"),
        ("", torch.ones(4, 64, 192), f"there are both {UP} and {UP}_blocks"),
        ("_scales", torch.ones(4, 192, 3).byte(), "scales of shape [4, 192, 3], and [4, 192, 2]"),
        ("_blocks", torch.ones(4, 192, 32).byte(), "shape [4, 192, 32], and [experts, outputs"),
        ("_scales", torch.ones(4, 192, 2), f"{UP}_blocks has scales of type F32, and U8 is read"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(end, tensor, told, folder):
    with pytest.raises(UnsupportedModel, match=re.escape(told)):
        StageModel.load(Checkpoint(changed(folder, {f"{UP}{end}": tensor})), (1, 2))
