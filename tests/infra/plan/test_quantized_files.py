"""Real safetensors files, written by safetensors itself."""

import pytest
import torch
from safetensors.torch import save_file

from infra.plan.model_config import read_model_config
from infra.plan.model_files import BadModel
from infra.plan.quantized_files import quantization_sign

PLAIN = {
    "model.layers.0.mlp.up_proj.weight": torch.ones(2, 2, dtype=torch.bfloat16),
    "model.layers.0.attn.bias": torch.ones(2, 2, dtype=torch.bool),
    "model.layers.0.position_ids": torch.arange(2),
}


def test_plain_weights_and_their_buffers_show_nothing(tmp_path):
    assert quantization_sign(tmp_path) == ""
    save_file(PLAIN, tmp_path / "model.safetensors")
    assert quantization_sign(tmp_path) == ""


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json"])
def test_a_file_of_a_tool_shows_it(name, tmp_path):
    (tmp_path / name).write_text("{}")
    assert quantization_sign(tmp_path) == f"it has a {name}"


@pytest.mark.parametrize(
    "end", ["qweight", "scales", "weight_scale_inv", "weight.absmax", "weight_packed", "g_idx"]
)
def test_a_tensor_beside_a_weight_shows_it(end, tmp_path):
    save_file(PLAIN, tmp_path / "model-1.safetensors")
    save_file({f"model.layers.1.up_proj.{end}": torch.ones(1)}, tmp_path / "model-2.safetensors")
    assert quantization_sign(tmp_path) == f"model-2.safetensors has model.layers.1.up_proj.{end}"


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.uint8, "U8")],
)
def test_a_weight_of_another_type_shows_it(dtype, name, tmp_path):
    save_file({"lm_head.weight": torch.ones(2, 2).to(dtype)}, tmp_path / "model.safetensors")
    assert quantization_sign(tmp_path) == f"model.safetensors has lm_head.weight of type {name}"


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x05\0\0"])
def test_what_is_no_safetensors_file_shows_nothing(data, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(data)
    assert quantization_sign(tmp_path) == ""


def test_the_plan_refuses_such_a_folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert read_model_config(str(tmp_path)).config == {"model_type": "llama"}
    save_file({"a.qweight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(BadModel, match=r"quantized weights.*model\.safetensors has a\.qweight"):
        read_model_config(str(tmp_path))
