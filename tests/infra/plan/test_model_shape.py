"""Parameter counts against the models that transformers builds, on the meta device."""

import itertools
import json
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.models import DEMO_MODEL
from infra.plan.model_config import read_model_config
from infra.plan.model_families import CAUSAL_MODEL_TYPES, FAMILIES, REFUSED
from infra.plan.model_shape import UnknownShape, UnsplittableModel, model_shape
from tests.lanes import examples

SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WITHOUT_KV_HEADS = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
CONFIGS: dict[str, Any] = {
    "llama": SIZES,
    "llama tied, biased": SIZES
    | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "qwen2": SIZES,
    "qwen3": SIZES,
    "qwen2_moe": SIZES
    | {
        "num_experts": 8,
        "moe_intermediate_size": 256,
        "shared_expert_intermediate_size": 512,
        "mlp_only_layers": [1],
    },
    "qwen3_moe": SIZES
    | {"num_experts": 8, "moe_intermediate_size": 256, "decoder_sparse_step": 2, "head_dim": 64},
    "mistral": SIZES,
    "mixtral": SIZES | {"num_local_experts": 4},
    "phi": SIZES,
    "phi with query norms": SIZES | {"qk_layernorm": True},
    "phi3": SIZES,
    "gemma2": SIZES,
    "gemma3_text": SIZES,
    "gpt2": {"n_embd": 512, "n_layer": 4, "n_head": 8, "vocab_size": 1000, "n_positions": 512,
             "bos_token_id": 1, "eos_token_id": 2},
    "gpt_neox": WITHOUT_KV_HEADS,
    "opt": {"hidden_size": 512, "ffn_dim": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
            "vocab_size": 1000, "word_embed_proj_dim": 512},
    "stablelm": SIZES,
    "stablelm parallel": SIZES | {"use_parallel_residual": True, "use_qkv_bias": True},
    "stablelm with query norms": SIZES | {"qk_layernorm": True},
    "olmo2": SIZES,
    "granite": SIZES,
    "cohere": SIZES,
    "cohere with query norms": SIZES | {"use_qk_norm": True},
    "smollm3": SIZES,
    "starcoder2": SIZES,
    "gpt_oss": SIZES | {"num_local_experts": 4, "rope_parameters": {"rope_type": "default"}},
    "glm": SIZES,
    "glm4": SIZES,
    "exaone4": SIZES,
    "deepseek_v3": WITHOUT_KV_HEADS
    | {
        "n_routed_experts": 8,
        "moe_intermediate_size": 256,
        "q_lora_rank": 128,
        "kv_lora_rank": 64,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    },
}  # fmt: skip


def layer_numel(model: torch.nn.Module, layer: int) -> int:
    # The router's correction bias is a buffer that is loaded like a weight.
    buffers = [
        item for item in model.named_buffers() if item[0].endswith("e_score_correction_bias")
    ]
    return sum(
        tensor.numel()
        for name, tensor in [*model.named_parameters(), *buffers]
        if f"layers.{layer}." in name or f".h.{layer}." in name
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_are_those_of_the_model(name):
    config = transformers.AutoConfig.for_model(name.split()[0], **CONFIGS[name])
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    layers = tuple(layer_numel(model, layer) for layer in range(4))
    outside = sum(parameter.numel() for parameter in model.parameters()) - sum(
        parameter.numel()
        for key, parameter in model.named_parameters()
        if any(f"layers.{layer}." in key or f".h.{layer}." in key for layer in range(4))
    )
    # What a hub's config.json says in full, and one that leaves defaults out.
    for document in (config.to_dict(), config.to_diff_dict()):
        shape = model_shape(json.loads(json.dumps(document)) | {"model_type": config.model_type})
        assert shape.layer_parameters == layers
        assert shape.parameters == outside + sum(layers)
        assert shape.tied == bool(config.tie_word_embeddings)
        assert shape.exact


def test_every_family_is_compared():
    assert {name.split()[0] for name in CONFIGS} == set(FAMILIES)
    assert len(FAMILIES) >= 24
    assert not set(FAMILIES) & set(REFUSED)


@pytest.fixture
def attended():
    """What layers hand to the attention interface, where the runner keeps it: (keys, values)."""
    seen = []

    def record(module, query, key, value, attention_mask, **kwargs):
        seen.append((key, value))
        batch, heads, length, _ = query.shape
        return query.new_zeros(batch, length, heads, value.shape[-1]), None

    transformers.AttentionInterface.register("recording", record)
    return seen


@pytest.mark.parametrize("name", CONFIGS)
def test_kv_values_are_those_that_the_attention_function_gets(name, attended):
    torch.set_num_threads(1)
    config = transformers.AutoConfig.for_model(name.split()[0], **CONFIGS[name])
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="recording")
    with torch.no_grad():
        model.eval()(torch.tensor([[5, 6, 7]]), use_cache=False)
    held = tuple((key.numel() + value.numel()) // 3 for key, value in attended)
    assert model_shape(config.to_dict()).kv_values_per_token == held


def test_the_demo_model():
    shape = model_shape(read_model_config(DEMO_MODEL).config)
    assert shape.parameters == 134_515_008
    assert (shape.num_layers, shape.hidden_size, shape.vocab_size) == (30, 576, 49152)
    assert (shape.tied, shape.max_positions) == (True, 8192)
    assert shape.kv_values_per_token == (2 * 3 * 64,) * 30


@pytest.mark.parametrize(
    "model_type",
    ["mamba", "falcon", "bloom", "mpt", "gptj", "codegen", "llama4", "gemma3n", "t5", "jamba",
     "zamba2", "bamba", "falcon_h1", "granitemoehybrid", "nemotron_h", "qwen3_next", "rwkv"],
)  # fmt: skip
def test_what_cannot_be_split_is_refused_by_name(model_type):
    with pytest.raises(UnsplittableModel, match=f"^model_type {model_type} "):
        model_shape(SIZES | {"model_type": model_type})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type dynamic"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_parameters.rope_type dynamic"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"vision_config": {}}, "multimodal"),
        ({"quantization_config": {"quant_method": "exl3"}}, "quant_method = 'exl3' is not read"),
        ({"quantization_config": ["fp8"]}, "quantization_config is not an object"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": 128}},
            "quantization_config.weight_block_size = 128: must be two whole numbers",
        ),
    ],
)
def test_what_a_config_says_against_splitting(change, told):
    with pytest.raises(UnsplittableModel, match=told):
        model_shape(SIZES | {"model_type": "llama"} | change)


def test_the_known_model_types_are_those_of_the_pinned_transformers():
    names = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert frozenset(names) == CAUSAL_MODEL_TYPES
    assert set(FAMILIES) <= CAUSAL_MODEL_TYPES


def test_code_beside_a_config_counts_only_where_transformers_has_no_such_model():
    """As in Phi-3's published config.json."""
    auto_map = {"auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}}
    assert model_shape(SIZES | auto_map | {"model_type": "phi3"}).exact
    with pytest.raises(UnsplittableModel, match=r"model_type mine has code of its own \(auto_map"):
        model_shape(SIZES | auto_map | {"model_type": "mine"})


def test_an_unknown_model_type_is_taken_for_a_llama():
    shape = model_shape(SIZES | {"model_type": "brand_new"})
    assert not shape.exact
    assert shape.layer_parameters == model_shape(SIZES | {"model_type": "llama"}).layer_parameters


NO_TYPES: list[object] = ["", 0, [], None]
NO_SIZES: list[object] = [None, "many", -1, 0, True, []]
SIZE_KEYS = ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]


@pytest.mark.parametrize(
    ("key", "value"),
    [*itertools.product(["model_type"], NO_TYPES), *itertools.product(SIZE_KEYS, NO_SIZES)],
)
def test_a_config_without_sizes_is_told(key, value):
    with pytest.raises(UnknownShape, match=key):
        model_shape(SIZES | {"model_type": "llama", key: value})
    without = {name: item for name, item in SIZES.items() if name != key}
    with pytest.raises(UnknownShape, match=key):
        model_shape(without | ({} if key == "model_type" else {"model_type": "llama"}))


@settings(max_examples=examples(300), deadline=None)
@given(
    st.sampled_from(sorted(CONFIGS)),
    st.dictionaries(
        st.sampled_from(sorted({key for config in CONFIGS.values() for key in config})),
        st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just([]) | st.just({}),
        max_size=3,
    ),
)
def test_nonsense_in_a_config_is_told_or_ignored(name, changes):
    try:
        shape = model_shape(CONFIGS[name] | changes | {"model_type": name.split()[0]})
    except UnknownShape:
        return
    assert min(shape.layer_parameters) > 0
    assert min(shape.kv_values_per_token) > 0
