"""What llm-compressor writes, against (number - zero point) * scale."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file

from runner.errors import UnsupportedModel
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel
from tests.runner.stage.model.quantized.packing import packed
from tests.runner.stage.model.quantized.quantized_folder import (
    FILE,
    changed,
    logits,
    quantized_folder,
    whole_folder,
)

GROUP = 24  # does not divide 64
QUERY = "model.layers.1.self_attn.q_proj"


def described(form, **weights):
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"} | weights
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "sparsity_config": {"format": "dense"},
        "transform_config": {},
        "kv_cache_scheme": None,
    }


GROUPS = {"strategy": "group", "group_size": GROUP}
INT4 = described("pack-quantized", num_bits=4, **GROUPS)


@dataclass
class Way:
    """One way to quantize; `whole` gets what the format defines."""

    config: dict
    bits: int = 8
    group: int | None = None
    zeros: bool = False
    ordered: bool = False
    scale_dtype: torch.dtype = torch.float32
    packs: bool = False
    one: bool = False

    def __post_init__(self):
        self.whole = {}

    def __call__(self, name, weight):
        rows, columns = weight.shape
        size = self.group or columns
        order = torch.arange(columns) // size
        if self.ordered:
            order = order[torch.randperm(columns)]
        groups = -(-columns // size)
        middle, most = 2 ** (self.bits - 1), 2 ** (self.bits - 1) - 1
        scale = torch.rand(1 if self.one else rows, groups).add(0.5).div(4 * most)
        scale = scale.to(self.scale_dtype)
        zeros = torch.randint(-3, 4, (rows, groups)) if self.zeros else torch.zeros(rows, groups)
        numbers = (weight / scale.float()[:, order] + zeros[:, order]).round()
        numbers = numbers.clamp(-middle, most)
        self.whole[name] = (numbers - zeros[:, order]) * scale.float()[:, order]
        end = "_packed" if self.packs else ""
        values = packed(numbers + middle, self.bits) if self.packs else numbers.to(torch.int8)
        stored = {name + end: values, name + "_scale": scale.reshape(1) if self.one else scale}
        if self.packs:
            stored[name + "_shape"] = torch.tensor([rows, columns])
        if self.zeros:
            down = packed((zeros + middle).T, self.bits).T.contiguous()
            stored[name + "_zero_point"] = down if self.packs else zeros.to(torch.int8)
        if self.ordered:
            stored[name + "_g_idx"] = order.int()
        return stored


WAYS = {
    "int8 rows": lambda: Way(described("int-quantized")),
    "int8 matrices": lambda: Way(described("naive-quantized", strategy="tensor"), one=True),
    "int8 zeros": lambda: Way(described("int-quantized", symmetric=False), zeros=True),
    "int4 groups": lambda: Way(INT4, 4, GROUP, packs=True),
    "int4 bfloat16 scales": lambda: Way(
        INT4, 4, GROUP, packs=True, scale_dtype=torch.bfloat16
    ),
    "int4 zeros": lambda: Way(
        described("pack-quantized", num_bits=4, symmetric=False, **GROUPS),
        4, GROUP, packs=True, zeros=True,
    ),
    "int4 order": lambda: Way(
        described("pack-quantized", num_bits=4, actorder="group", **GROUPS),
        4, GROUP, packs=True, ordered=True,
    ),
    "packed int8 rows": lambda: Way(described("pack-quantized"), packs=True),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_every_way_equals_its_definition(name, tmp_path):
    way = WAYS[name]()
    folder = quantized_folder(
        tmp_path / "quantized", "llama", way.config, way, intermediate_size=100
    )
    rest = {key: tensor for key, tensor in load_file(folder / FILE).items() if "_proj" not in key}
    whole = whole_folder(folder, tmp_path / "whole", rest | way.whole)
    expected = logits(whole, 1)
    assert torch.equal(logits(folder, 1), expected)
    assert torch.equal(logits(folder, 2), expected)


def test_experts_are_fused_of_packed_ones(tmp_path):
    way = WAYS["int4 groups"]()
    folder = quantized_folder(tmp_path / "quantized", "qwen3_moe", INT4, way)
    rest = {key: tensor for key, tensor in load_file(folder / FILE).items() if "_proj" not in key}
    whole = whole_folder(folder, tmp_path / "whole", rest | way.whole)
    assert torch.equal(logits(folder, 2), logits(whole, 2))


def other(config, path, value):
    config = copy.deepcopy(config)
    *way, last = path.split(".")
    inner = config
    for key in way:
        inner = inner[key]
    inner[last] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("format", "nvfp4-pack-quantized", "format = 'nvfp4-pack-quantized' is not read"),
        ("config_groups", {}, "config_groups describes no weights"),
        ("config_groups.group_0.weights.num_bits", 3, "group_0.weights has int of 3 bits"),
        ("config_groups.group_0.weights.type", "float", "has float of 4 bits"),
        ("config_groups.group_0.weights.strategy", "token", "weights.strategy = 'token'"),
        ("config_groups.group_0.weights.group_size", 0, "weights.group_size = 0: must be"),
        ("config_groups.b", {"weights": {"num_bits": 8}}, "config_groups.b.weights is another"),
        ("sparsity_config.format", "sparse-24-bitmask", "sparsity_config.format = 'sparse-24"),
        ("transform_config", {"config_groups": {"R1": {}}}, "quantization_config.transform_config"),
    ],
)
def test_a_config_that_is_not_read_is_refused_by_its_key(path, value, told, tmp_path):
    config = other(INT4, path, value)
    folder = quantized_folder(tmp_path, "llama", config, lambda name, tensor: {name: tensor})
    with pytest.raises(UnsupportedModel, match=re.escape(told)):
        Checkpoint(folder)


LIES = [
    (f"{QUERY}.weight_packed is there without {QUERY}.weight_scale", "_scale", None),
    (f"is there without {QUERY}.weight_shape", "_shape", None),
    (f"{QUERY}.weight_packed holds [64, 8] words", "_shape", torch.tensor([64, 640])),
    ("a scale of shape [64, 1], and [64, 3] is needed", "_scale", torch.ones(64, 1)),
    ("is of type I64, and I32 is read", "_packed", torch.ones(64, 8, dtype=torch.int64)),
    ("a zero point of shape [64, 3], and [8, 3]", "_zero_point", torch.ones(64, 3).int()),
    ("g_idx that is not of 64 groups from 0 to 2", "_g_idx", torch.full((64,), 3).int()),
    ("g_idx that is not of 64 groups from 0 to 2", "_g_idx", torch.zeros(8).int()),
    (f"there are both {QUERY}.weight and {QUERY}.weight_", "", torch.ones(64, 64)),
]


@pytest.mark.parametrize(("told", "end", "tensor"), LIES)
def test_tensors_that_are_not_as_the_config_says_are_refused_by_name(told, end, tensor, tmp_path):
    folder = quantized_folder(tmp_path, "llama", INT4, WAYS["int4 groups"]())
    changed(folder, {f"{QUERY}.weight{end}": tensor})
    with pytest.raises(UnsupportedModel, match=re.escape(told)):
        StageModel.load(Checkpoint(folder), (1, 2))


def test_a_missing_zero_point_is_refused_by_name(tmp_path):
    way = WAYS["int8 zeros"]()
    folder = quantized_folder(tmp_path, "llama", way.config, way)
    changed(folder, {f"{QUERY}.weight_zero_point": None})
    with pytest.raises(UnsupportedModel, match=re.escape(f"{QUERY}.weight has no zero point")):
        StageModel.load(Checkpoint(folder), (1, 2))
