"""Real safetensors files, written by safetensors itself."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from contract.quantization.table import read_scheme
from infra.plan.model_config import read_model_config
from infra.plan.model_files import BadModel
from infra.plan.quantized_files import quantization_sign, sign_in_names

PLAIN = {
    "model.layers.0.mlp.up_proj.weight": torch.ones(2, 2, dtype=torch.bfloat16),
    "model.layers.0.attn.bias": torch.ones(2, 2, dtype=torch.bool),
    "model.layers.0.position_ids": torch.arange(2),
}


def test_plain_weights_and_their_buffers_show_nothing(tmp_path):
    assert quantization_sign(tmp_path, None) == ""
    save_file(PLAIN, tmp_path / "model.safetensors")
    assert quantization_sign(tmp_path, None) == ""


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json"])
def test_a_file_of_a_tool_shows_it(name, tmp_path):
    (tmp_path / name).write_text("{}")
    assert quantization_sign(tmp_path, None) == f"it has a {name}"


@pytest.mark.parametrize(
    "end", ["qweight", "scales", "weight_scale_inv", "weight.absmax", "weight_packed", "g_idx"]
)
def test_a_tensor_beside_a_weight_shows_it(end, tmp_path):
    save_file(PLAIN, tmp_path / "model-1.safetensors")
    save_file({f"model.layers.1.up_proj.{end}": torch.ones(1)}, tmp_path / "model-2.safetensors")
    told = quantization_sign(tmp_path, None)
    assert told == f"model-2.safetensors has model.layers.1.up_proj.{end}"


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.uint8, "U8")],
)
def test_a_weight_of_another_type_shows_it(dtype, name, tmp_path):
    save_file({"lm_head.weight": torch.ones(2, 2).to(dtype)}, tmp_path / "model.safetensors")
    told = quantization_sign(tmp_path, None)
    assert told == f"model.safetensors has lm_head.weight of type {name}"


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x05\0\0"])
def test_what_is_no_safetensors_file_shows_nothing(data, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(data)
    assert quantization_sign(tmp_path, None) == ""


def test_the_plan_refuses_such_a_folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert read_model_config(str(tmp_path)).config == {"model_type": "llama"}
    save_file({"a.qweight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(BadModel, match=r"quantized weights.*model\.safetensors has a\.qweight"):
        read_model_config(str(tmp_path))


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
SCALED = {
    "a.weight": torch.ones(130, 200).to(torch.float8_e4m3fn),
    "a.weight_scale_inv": torch.ones(2, 2),
    "norm.weight": torch.ones(200),
}
LIES = {
    "a.weight_scale_inv is there without a.weight": {"a.weight": None},
    "a.weight is of type F32, and F8_E4M3 is read": {"a.weight": torch.ones(130, 200)},
    "a scale of shape [1, 2], and [2, 2] is needed": {"a.weight_scale_inv": torch.ones(1, 2)},
    "a scale of type I32": {"a.weight_scale_inv": torch.ones(2, 2, dtype=torch.int32)},
    "model.safetensors has a.weight of type F8_E4M3": {"a.weight_scale_inv": None},
    "model.safetensors has b.qweight": {"b.qweight": torch.ones(1)},
}


def quantized_folder(folder, changes, config=FP8):
    tensors = {name: tensor for name, tensor in (SCALED | changes).items() if tensor is not None}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "hf_quant_config.json").write_text("{}")  # config.json says enough
    return str(folder)


def test_what_config_json_describes_is_read(tmp_path):
    assert read_model_config(quantized_folder(tmp_path, {})).weight_files


@pytest.mark.parametrize("told", LIES)
def test_a_config_that_lies_about_its_tensors_is_refused_by_name(told, tmp_path):
    with pytest.raises(BadModel, match=re.escape(told)):
        read_model_config(quantized_folder(tmp_path, LIES[told]))


def test_nothing_is_said_of_files_of_which_some_are_not_here(tmp_path):
    """As in a hub cache that a rank has filled."""
    quantized_folder(tmp_path, {"a.weight": None})
    files = {"a.weight": "other.safetensors", "a.weight_scale_inv": "model.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert quantization_sign(tmp_path, read_scheme(FP8)) == ""


def test_an_index_shows_what_is_missing():
    scheme = read_scheme(FP8)
    assert sign_in_names(SCALED, scheme) == ""
    told = sign_in_names(["model.a.weight_scale_inv"], scheme)
    assert told.endswith("model.a.weight_scale_inv is there without model.a.weight")


def test_a_method_that_is_not_read_is_told_before_what_shows_it(tmp_path):
    folder = quantized_folder(tmp_path, {}, {"quant_method": "exl3"})
    with pytest.raises(BadModel, match=r"quant_method = 'exl3' is not read.*hf_quant_config\.json"):
        read_model_config(folder)
