"""Checkpoints as people have them: other names, further tensors, quantized weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.errors import ModelUnavailable, UnsupportedModel
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel
from tests.runner.stage.model.stage_pipeline import StagePipeline, Text
from tests.small_models import LAYERS, make_small_model

PROMPT = list(range(1, 12))
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
LAYER = "model.layers.2.self_attn."
QUERY = f"{LAYER}q_proj"


def saved(folder, architecture="llama", **changes):
    """The tensors of a small model, which is saved as one file."""
    make_small_model(architecture, folder / "sharded", **changes).save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def rewritten(folder, tensors, *, index=False):
    """The folder with these tensors, in one file, or in two that an index names."""
    if not index:
        save_file(tensors, folder / "model.safetensors")
        return folder
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, half in halves.items():
        save_file({name: tensors[name] for name in half}, folder / file)
    files = {name: file for file, half in halves.items() for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def answers(folder):
    return [StagePipeline(folder, LAYERS, ranks).run([Text(PROMPT, 6)]) for ranks in (1, 2, 4)]


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("llama", {"tie_word_embeddings": True}), ("gemma2", {}), ("gpt2", {}), ("opt", {})],
)
@pytest.mark.parametrize("index", [False, True])
def test_tied_weights_may_lie_under_the_heads_name_only(architecture, changes, index, tmp_path):
    tensors = saved(tmp_path, architecture, **changes)
    expected = answers(tmp_path)
    assert expected[0] == expected[1] == expected[2]
    [embedding] = [
        name
        for name in tensors
        if name.endswith(("embed_tokens.weight", "wte.weight")) and HEAD not in tensors
    ]
    tensors[HEAD] = tensors.pop(embedding)
    assert answers(rewritten(tmp_path, tensors, index=index)) == expected


def test_an_untied_models_embedding_is_not_its_head(tmp_path):
    tensors = saved(tmp_path)
    del tensors[EMBEDDING]
    rewritten(tmp_path, tensors)
    with pytest.raises(ModelUnavailable, match=r"lack model\.embed_tokens\.weight"):
        StageModel.load(Checkpoint(tmp_path), (0, 2))


def unloadable(folder, layers=(0, LAYERS)):
    """The refusal of a stage that must not have begun to load."""
    with pytest.raises(UnsupportedModel) as refusal:
        Checkpoint(folder).read_own(layers, torch.float32)
    return str(refusal.value)


@pytest.mark.parametrize(
    "further",
    [
        {f"{QUERY}.weight_scale_inv": torch.ones(1)},
        {f"{QUERY}.weight_scale": torch.ones(1)},
        {f"{QUERY}.qweight": torch.ones(4, 4, dtype=torch.int32)},
        {f"{QUERY}.g_idx": torch.ones(4, dtype=torch.int32)},
        {f"{QUERY}.weight.absmax": torch.ones(4)},
        {f"{QUERY}.bias": torch.ones(4)},
        {"lm_head.scales": torch.ones(4)},
        {"model.embed_tokens.weight_packed": torch.ones(4)},
        {"model.norm.bias": torch.ones(4)},
    ],
    ids=lambda further: next(iter(further)),
)
def test_tensors_that_the_model_does_not_take_are_refused_by_name(further, tmp_path):
    rewritten(tmp_path, saved(tmp_path) | further)
    (name,) = further
    assert f"its files have {name}, which LlamaForCausalLM does not take" in unloadable(tmp_path)
    # Whichever stage is asked, so that all say the same.
    assert name in unloadable(tmp_path, (0, 1))


def test_an_index_shows_them_before_a_file_is_fetched(tmp_path):
    tensors = saved(tmp_path)
    scales = {f"model.layers.{index}.mlp.up_proj.scales": torch.ones(1) for index in range(LAYERS)}
    scales |= {f"model.layers.{index}.mlp.up_proj.qzeros": torch.ones(1) for index in range(LAYERS)}
    rewritten(tmp_path, tensors | scales, index=True)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.0.* and 4 more, which Llama"):
        Checkpoint(tmp_path).own_files((0, 1))


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.int32, "I32"),
    ],
)
def test_weights_of_fewer_bits_are_refused_by_name(dtype, name, tmp_path):
    tensors = saved(tmp_path)
    tensors[f"{QUERY}.weight"] = tensors[f"{QUERY}.weight"].to(dtype)
    rewritten(tmp_path, tensors)
    told = unloadable(tmp_path, (2, 3))
    assert f"{QUERY}.weight is of type {name}: quantized" in told
    # Other stages' tensors are theirs to judge.
    Checkpoint(tmp_path).read_own((0, 2), torch.float32)


def test_scales_of_fused_experts_are_refused_too(tmp_path):
    expert = "model.layers.1.mlp.experts.3.gate_proj"
    tensors = saved(tmp_path, "qwen3_moe")
    assert f"{expert}.weight" in tensors
    rewritten(tmp_path, tensors | {f"{expert}.weight_scale_inv": torch.ones(1)})
    assert f"{expert}.weight_scale_inv" in unloadable(tmp_path)


@pytest.mark.parametrize("file", ["hf_quant_config.json", "quantize_config.json"])
def test_a_quantizing_tools_file_is_refused_by_name(file, tmp_path):
    make_small_model("llama", tmp_path)
    (tmp_path / file).write_text('{"quantization": {"quant_algo": "FP8"}}')
    with pytest.raises(UnsupportedModel, match=f"quantized, {file} says"):
        Checkpoint(tmp_path)


def test_a_weight_of_another_shape_is_refused_by_name(tmp_path):
    tensors = saved(tmp_path)
    tensors["model.norm.weight"] = torch.ones(8)
    rewritten(tmp_path, tensors)
    with pytest.raises(ModelUnavailable, match=r"model\.norm\.weight has shape \[8\].* \[64\]"):
        StageModel.load(Checkpoint(tmp_path), (0, LAYERS))


@pytest.mark.parametrize(
    ("architecture", "further"),
    [
        ("llama", {f"{LAYER}rotary_emb.inv_freq": torch.ones(8)}),
        ("llama", {f"model.layers.{LAYERS}.eh_proj.weight": torch.ones(4, 4)}),
        (
            "llama",
            {"mtp.0.q_proj.qweight": torch.ones(4, 4), "v_head.weight": torch.ones(4)},
        ),
        ("gpt2", {"transformer.h.1.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)}),
        ("gpt2", {"h.1.attn.bias": torch.ones(1, 1, 8, 8), "h.1.attn.masked_bias": torch.ones(1)}),
        ("gpt_neox", {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8)}),
        ("gpt_neox", {"gpt_neox.layers.0.attention.masked_bias": torch.ones(1)}),
        ("gpt_neox", {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4)}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_buffers_of_older_versions_and_further_heads_are_left_out(architecture, further, tmp_path):
    tensors = saved(tmp_path, architecture)
    expected = answers(tmp_path)
    assert answers(rewritten(tmp_path, tensors | further)) == expected


GATE = "model.layers.1.mlp.experts.{}.gate_proj.weight"


def test_an_expert_of_another_shape_is_refused_by_name(tmp_path):
    tensors = saved(tmp_path, "qwen3_moe")
    tensors[GATE.format(2)] = torch.ones(8, 64)
    rewritten(tmp_path, tensors)
    with pytest.raises(
        ModelUnavailable, match=rf"{GATE.format(2)} has shape \[8, 64\], and others"
    ):
        StageModel.load(Checkpoint(tmp_path), (0, LAYERS))


def test_a_missing_expert_is_refused_by_the_name_of_its_kind(tmp_path):
    tensors = saved(tmp_path, "qwen3_moe")
    del tensors[GATE.format(3)]
    rewritten(tmp_path, tensors)
    told = r"there are 3 of model\.layers\.\*\.mlp\.experts\.\*\.gate_proj\.weight, and 4 go into"
    with pytest.raises(ModelUnavailable, match=told):
        StageModel.load(Checkpoint(tmp_path), (0, LAYERS))
