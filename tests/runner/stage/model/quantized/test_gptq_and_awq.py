"""GPTQ as AutoGPTQ and GPTQModel write it, AWQ as AutoAWQ does, against (number - zero) * scale.

Their packages need CUDA: what they define is written here once more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

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

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
GROUP = 24  # does not divide 64
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
PARTS = ("qweight", "qzeros", "scales", "g_idx")
QUERY = "model.layers.1.self_attn.q_proj"


@dataclass
class Way:
    """One way to quantize; `whole` gets what the format defines."""

    config: dict
    ordered: bool = False
    whole: dict = field(default_factory=dict)

    def __call__(self, name, weight):
        bits, size = self.config["bits"], self.config["group_size"]
        outputs, inputs = weight.shape
        size = inputs if size == -1 else size
        order = torch.arange(inputs) // size
        if self.ordered:
            order = order[torch.randperm(inputs)]
        groups, most = -(-inputs // size), 2**bits - 1
        scale = torch.rand(groups, outputs).add(0.5).mul(2 / most).half()
        zeros = torch.randint(1, most + 1, (groups, outputs))
        numbers = (weight.T / scale.float()[order] + zeros[order]).round().clamp(0, most)
        self.whole[name] = ((numbers - zeros[order]) * scale.float()[order]).T.contiguous()
        stem = name.removesuffix("weight")
        if self.config["quant_method"] == "awq":
            values, packed_zeros = packed(numbers, 4, AWQ_ORDER), packed(zeros, 4, AWQ_ORDER)
        else:
            lacks = self.config.get("checkpoint_format") != "gptq_v2"
            values = packed(numbers.T, bits).T.contiguous()
            packed_zeros = packed(zeros - lacks * 1, bits)
        stored = {f"{stem}qweight": values, f"{stem}qzeros": packed_zeros, f"{stem}scales": scale}
        if self.config["quant_method"] == "gptq":
            stored[f"{stem}g_idx"] = order.int()
        return stored


WAYS = {
    "gptq": lambda: Way(GPTQ),
    "gptq order": lambda: Way(GPTQ | {"desc_act": True}, ordered=True),
    "gptq 8 bits": lambda: Way(GPTQ | {"bits": 8}),
    "gptq rows": lambda: Way(GPTQ | {"group_size": -1}),
    "gptq v2": lambda: Way(GPTQ | {"checkpoint_format": "gptq_v2"}),
    "awq": lambda: Way(AWQ),
    "awq rows": lambda: Way(AWQ | {"group_size": -1}),
}


@pytest.mark.parametrize("name", WAYS)
def test_every_way_equals_its_definition(name, tmp_path):
    way = WAYS[name]()
    # With biases, which stay what they are.
    folder = quantized_folder(tmp_path / "quantized", "qwen2", way.config, way)
    parts = ("qweight", "qzeros", "scales", "g_idx")
    rest = {
        key: found for key, found in load_file(folder / FILE).items() if not key.endswith(parts)
    }
    whole = whole_folder(folder, tmp_path / "whole", rest | way.whole)
    expected = logits(whole, 1)
    assert torch.equal(logits(folder, 1), expected)
    assert torch.equal(logits(folder, 2), expected)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (GPTQ | {"bits": 3}, "quantization_config.bits = 3 is not read, 2 or 4 or 8 is"),
        (GPTQ | {"bits": True}, "quantization_config.bits = True is not read"),
        (GPTQ | {"group_size": 0}, "quantization_config.group_size = 0: must be a whole number"),
        (
            GPTQ | {"checkpoint_format": "marlin"},
            "quantization_config.checkpoint_format = 'marlin'",
        ),
        (AWQ | {"bits": 8}, "quantization_config.bits = 8 is not read, 4 is"),
        (AWQ | {"version": "gemv"}, "quantization_config.version = 'gemv' is not read, gemm is"),
    ],
)
def test_a_config_that_is_not_read_is_refused_by_its_key(config, told, tmp_path):
    folder = quantized_folder(tmp_path, "llama", config, lambda name, tensor: {name: tensor})
    with pytest.raises(UnsupportedModel, match=re.escape(told)):
        Checkpoint(folder)


LIES = [
    ("gptq", "qzeros", None, f"{QUERY}.qweight is there without {QUERY}.qzeros"),
    ("gptq", "qweight", None, f"is there without {QUERY}.qweight"),
    ("gptq", "qweight", torch.ones(16, 64).int(), "a scale of shape [3, 64], and [6, 64]"),
    ("gptq", "g_idx", torch.full((64,), 3).int(), f"{QUERY}.qweight has a g_idx that is not of 64"),
    ("gptq", "scales", torch.ones(3, 64).int(), "has a scale of type I32"),
    ("awq", "qzeros", torch.ones(3, 64).int(), "a zero point of shape [3, 64], and [3, 8]"),
    ("awq", "qweight", torch.ones(8, 64).int(), "a scale of shape [3, 64], and [1, 512]"),
    ("awq", "weight", torch.ones(64, 64), f"there are both {QUERY}.weight and {QUERY}."),
]


@pytest.mark.parametrize(("way", "end", "tensor", "told"), LIES)
def test_tensors_that_are_not_as_the_config_says_are_refused_by_name(
    way, end, tensor, told, tmp_path
):
    way = WAYS[way]()
    folder = quantized_folder(tmp_path, "llama", way.config, way)
    changed(folder, {f"{QUERY}.{end}": tensor})
    with pytest.raises(UnsupportedModel, match=re.escape(told)):
        StageModel.load(Checkpoint(folder), (1, 2))


def test_a_bias_of_0_may_lie_where_the_model_has_none(tmp_path):
    """As of AutoGPTQ's first versions."""
    folder = quantized_folder(tmp_path, "llama", GPTQ, WAYS["gptq"]())
    expected = logits(folder, 1)
    assert torch.equal(logits(changed(folder, {f"{QUERY}.bias": torch.zeros(64)}), 2), expected)
    changed(folder, {f"{QUERY}.bias": torch.ones(64)})
    told = re.escape(f"{QUERY}.qweight has a bias beside it that is not 0")
    with pytest.raises(UnsupportedModel, match=told):
        StageModel.load(Checkpoint(folder), (1, 2))


def test_other_bits_than_the_config_says_are_refused(tmp_path):
    folder = quantized_folder(tmp_path, "llama", GPTQ | {"bits": 8}, WAYS["gptq"]())
    with pytest.raises(UnsupportedModel, match=r"qweight has a scale of shape .* is needed"):
        StageModel.load(Checkpoint(folder), (1, 2))
