"""fp8 as it is published; blocks here are of 16x16, which do not divide every matrix."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import FineGrainedFP8Config

from runner.errors import ModelUnavailable, UnsupportedModel
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel
from tests.runner.stage.model.quantized.quantized_folder import (
    FILE,
    changed,
    dequantized_by_transformers,
    logits,
    quantized_folder,
    whole_folder,
)
from tests.small_models import LAYERS

BLOCK = 16
BLOCKS = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
_WEIGHTS = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": _WEIGHTS}},
}
ENDS = ("_scale", "_scale_inv")
QUERY = "model.layers.1.self_attn.q_proj.weight"


def in_blocks(name, weight, size=(BLOCK, BLOCK), end="_scale_inv"):
    """A scale for each block; those at the ends may be smaller."""
    grid = torch.tensor(
        [
            [part.abs().max() / 448 for part in row.split(size[1], 1)]
            for row in weight.split(size[0])
        ]
    )
    values = (weight / spread(grid, weight.shape, size)).to(torch.float8_e4m3fn)
    input_scale = name.removesuffix("weight") + "input_scale"  # of activations: not read
    return {name: values, name + end: grid, input_scale: torch.ones(1)}


def by_48_40(name, weight):
    return in_blocks(name, weight, (48, 40))


def by_row(name, weight):
    return in_blocks(name, weight, (1, weight.shape[1]), "_scale")


def by_matrix(name, weight):
    stored = in_blocks(name, weight, tuple(weight.shape), "_scale")
    return stored | {f"{name}_scale": stored[f"{name}_scale"].reshape(())}


def spread(grid, shape, size):
    """The scale of each number."""
    rows, columns = (
        torch.arange(count) // length for count, length in zip(shape, size, strict=True)
    )
    return grid[rows][:, columns]


def dequantized(folder, size):
    """By the format's definition; `size` of a block, 0 for a whole row or column of them."""
    stored, whole = load_file(folder / FILE), {}
    for name, tensor in stored.items():
        grid = next((stored[f"{name}{end}"] for end in ENDS if f"{name}{end}" in stored), None)
        if grid is not None:
            height, width = size[0] or tensor.shape[0], size[1] or tensor.shape[1]
            grid = grid.reshape(-1, -(-tensor.shape[1] // width))
            whole[name] = tensor.float() * spread(grid, tensor.shape, (height, width))
        elif not name.endswith((*ENDS, "input_scale")):
            whole[name] = tensor
    return whole


def loaded(folder, dtype="float32"):
    stage = StageModel.load(Checkpoint(folder), (0, LAYERS), dtype=dtype, pack=False)
    return stage._model.state_dict()


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_blocks_equal_transformers_own_dequantizing(architecture, tmp_path):
    folder = quantized_folder(tmp_path / "fp8", architecture, BLOCKS, in_blocks)
    config = FineGrainedFP8Config(weight_block_size=(BLOCK, BLOCK), dequantize=True)
    whole = dequantized_by_transformers(folder, tmp_path / "whole", config)
    for ranks in (1, 2):
        assert torch.equal(logits(folder, ranks), logits(whole, ranks))


@pytest.mark.parametrize(
    ("config", "quantize", "size"),
    [
        (BLOCKS, in_blocks, (BLOCK, BLOCK)),
        (BLOCKS | {"weight_block_size": [48, 40]}, by_48_40, (48, 40)),
        ({"quant_method": "fbgemm_fp8"}, by_row, (1, 0)),
        (COMPRESSED, by_row, (1, 0)),
        ({"quant_method": "fp8", "activation_scheme": "static"}, by_matrix, (0, 0)),
    ],
    ids=["blocks", "ends", "rows", "compressed-tensors", "matrices"],
)
def test_each_way_of_scaling_equals_its_definition(config, quantize, size, tmp_path):
    folder = quantized_folder(tmp_path / "fp8", "llama", config, quantize)
    expected = dequantized(folder, size)
    found = loaded(folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    halves = loaded(folder, "bfloat16")
    assert all(torch.equal(halves[name], tensor.bfloat16()) for name, tensor in expected.items())
    whole = whole_folder(folder, tmp_path / "whole", expected)
    for ranks in (1, 2):
        assert torch.equal(logits(folder, ranks), logits(whole, ranks))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("fp8", "'str' object"),  # transformers' own sentence
        ({}, "quant_method = None is not read"),
        ({"quant_method": "exl3"}, "quant_method = 'exl3' is not read; fp8"),
        (BLOCKS | {"weight_block_size": [128]}, "quantization_config.weight_block_size = [128]"),
        (BLOCKS | {"weight_block_size": [0, 1]}, "must be two whole numbers above 0"),
    ],
)
def test_a_config_that_is_not_read_is_refused_by_its_key(config, told, tmp_path):
    folder = quantized_folder(tmp_path, "llama", config, lambda name, tensor: {name: tensor})
    with pytest.raises(UnsupportedModel, match=re.escape(told)):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({f"{QUERY}_scale_inv": None}, f"{QUERY} is of type F8_E4M3: quantized"),
        ({QUERY: None}, f"{QUERY}_scale_inv is there without {QUERY}"),
        ({QUERY: torch.ones(64, 64)}, f"{QUERY} is of type F32, and F8_E4M3 is read"),
        ({f"{QUERY}_scale_inv": torch.ones(4, 3)}, "a scale of shape [4, 3], and [4, 4] is needed"),
        ({f"{QUERY}_scale": torch.ones(4, 4)}, f"there are both {QUERY}_scale"),
        ({"model.layers.1.mlp.qweight": torch.ones(1)}, "have model.layers.1.mlp.qweight, which"),
    ],
)
def test_tensors_that_are_not_as_the_config_says_are_refused_by_name(changes, told, tmp_path):
    folder = changed(quantized_folder(tmp_path, "llama", BLOCKS, in_blocks), changes)
    with pytest.raises(UnsupportedModel, match=re.escape(told)):
        StageModel.load(Checkpoint(folder), (1, 2))


def test_a_matrix_of_another_size_is_refused_by_name(tmp_path):
    folder = quantized_folder(tmp_path, "llama", BLOCKS, in_blocks)
    changed(folder, in_blocks(QUERY, torch.ones(32, 64)))
    with pytest.raises(ModelUnavailable, match=re.escape(f"{QUERY} has shape [32, 64]")):
        StageModel.load(Checkpoint(folder), (1, 2))


def test_a_stage_asks_for_the_files_of_its_own_scales_alone(tmp_path):
    folder = quantized_folder(tmp_path, "llama", BLOCKS, in_blocks)
    names = load_file(folder / FILE)
    files = {name: f"{'.'.join(name.split('.')[1:3])}-{name.endswith('_inv')}" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    found = Checkpoint(folder).own_files((1, 2))
    assert found == ["layers.1-False", "layers.1-True"]
