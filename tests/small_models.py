"""Small random-weight models of many architectures, whose greedy outputs are diverse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

VOCABULARY = 160
LAYERS = 4
WINDOW = 8
ROPE_BOUNDARY = 48

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
_GPT_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 256,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}
_SLIDING: dict[str, Any] = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
}
_LATENT: dict[str, Any] = {
    **_SIZES,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
}
_DEEPSEEK_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 48,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}

# The architectures that the project promises.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _SIZES,
    "qwen2": {**_SIZES, "tie_word_embeddings": True},
    "qwen3": {**_SIZES, "head_dim": 16},
    "qwen2_moe": {
        **_SIZES, **_EXPERTS, "shared_expert_intermediate_size": 48,
        "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2,
    },
    "qwen3_moe": {**_SIZES, **_EXPERTS, "head_dim": 16},
    "mistral": {**_SIZES, "sliding_window": WINDOW},
    "mixtral": {**_SIZES, **_EXPERTS},
    "phi": {**_SIZES, "partial_rotary_factor": 0.5},
    "phi3": {
        **_SIZES, "original_max_position_embeddings": ROPE_BOUNDARY, "pad_token_id": 0,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0,
            "short_factor": [1.0] * 8, "long_factor": [1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0],
        },
    },
    "gemma2": {**_SIZES, **_SLIDING, "head_dim": 16, "query_pre_attn_scalar": 16,
               "attn_logit_softcapping": 2.0, "tie_word_embeddings": True},
    "gemma3_text": {**_SIZES, **_SLIDING, "head_dim": 16, "query_pre_attn_scalar": 16,
                    "tie_word_embeddings": True},
    "gpt2": _GPT_SIZES,
    "gpt_neox": {**_SIZES, "rotary_pct": 0.5},
    "opt": {**_SIZES, "ffn_dim": 96, "word_embed_proj_dim": 32, "tie_word_embeddings": True},
    "stablelm": {**_SIZES, "qk_layernorm": True},
    "olmo2": _SIZES,
    "granite": {**_SIZES, "embedding_multiplier": 2.0, "residual_multiplier": 0.7,
                "attention_multiplier": 0.3, "logits_scaling": 2.0},
    "cohere": {**_SIZES, "use_qk_norm": True, "tie_word_embeddings": True},
    "smollm3": {**_SIZES, "no_rope_layer_interval": 2, "pad_token_id": 0},
    "starcoder2": {**_SIZES, "sliding_window": WINDOW},
    "gpt_oss": {**_SIZES, **_EXPERTS, **_SLIDING, "head_dim": 16},
    "glm4": {**_SIZES, "head_dim": 16, "pad_token_id": 0},
    "exaone4": {**_SIZES, **_SLIDING, "head_dim": 16},
    "deepseek_v3": {**_LATENT, **_DEEPSEEK_EXPERTS},
}  # fmt: skip

# One of each kind: plain, fused and absolute, experts, sliding, latent.
OF_EACH_KIND = ("llama", "gpt2", "qwen3_moe", "gemma2", "deepseek_v3")

# Further ones that pass the same tests.
FURTHER_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "apertus": _SIZES,
    "arcee": _SIZES,
    "biogpt": {**_SIZES, "num_key_value_heads": 4},
    "bitnet": _SIZES,
    "cohere2": {**_SIZES, **_SLIDING, "head_dim": 16},
    "deepseek_v2": {**_LATENT, **_DEEPSEEK_EXPERTS},
    "dots1": {**_SIZES, **_DEEPSEEK_EXPERTS, "head_dim": 16},
    "ernie4_5": {**_SIZES, "head_dim": 16},
    "ernie4_5_moe": {**_SIZES, **_EXPERTS, "moe_num_experts": 4, "moe_k": 2},
    "exaone_moe": {**_SIZES, **_EXPERTS, **_SLIDING, "head_dim": 16},
    "flex_olmo": {**_SIZES, **_EXPERTS},
    "gemma": {**_SIZES, "head_dim": 16},
    "glm": {**_SIZES, "head_dim": 16, "pad_token_id": 0},
    "glm4_moe": {**_SIZES, **_DEEPSEEK_EXPERTS, "head_dim": 16, "pad_token_id": 0},
    "gpt_bigcode": _GPT_SIZES,
    "granitemoe": {**_SIZES, **_EXPERTS},
    "helium": {**_SIZES, "head_dim": 16},
    "hunyuan_v1_dense": {**_SIZES, "head_dim": 16},
    "hunyuan_v1_moe": {**_SIZES, **_EXPERTS, "head_dim": 16, "moe_topk": 2},
    "internlm3": _SIZES,
    "jais2": _SIZES,
    "minicpm3": _LATENT,
    "minimax_m2": {**_SIZES, **_EXPERTS, "head_dim": 16},
    "ministral3": _SIZES,
    "nanochat": _SIZES,
    "nemotron": _SIZES,
    "olmo": _SIZES,
    "olmo3": {**_SIZES, **_SLIDING},
    "olmoe": {**_SIZES, **_EXPERTS},
    "persimmon": _SIZES,
    "phimoe": {**_SIZES, **_EXPERTS},
    "seed_oss": {**_SIZES, "head_dim": 16},
    "solar_open": {**_SIZES, **_DEEPSEEK_EXPERTS, "head_dim": 16},
    "vaultgemma": {**_SIZES, **_SLIDING, "head_dim": 16},
    "youtu": _LATENT,
}  # fmt: skip

# Model types that are refused when loading: changes to the default configuration, the reason given.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "falcon": ({}, "outside transformers' attention interface"),
    "bloom": ({}, "attention interface"),
    "mpt": ({}, "attention interface"),
    "gptj": ({}, "outside transformers' attention interface"),
    "codegen": ({}, "attention interface"),
    "diffllama": ({}, "attends more than once"),
    "mamba": ({}, "kind linear_attention"),
    "jamba": ({}, "state|kind"),
    "lfm2": ({"full_attn_idxs": [2, 5]}, "kind conv"),
    "qwen3_next": ({}, "kind linear_attention"),
    "falcon_h1": ({}, "kind hybrid"),
    "gemma3n_text": ({}, "share KV"),
    "llama4_text": ({}, "chunked"),
    "t5": ({}, "causal language model"),
    "bart": ({}, "encoder-decoder"),
}


def make_small_model(architecture: str, folder: Path, **changes: Any) -> Any:
    """Save a model with small shards to `folder` and return it, attention in its plainest form.

    Never ends a text by itself. `changes` are configuration keys.
    """
    torch.manual_seed(0)
    known = {**ARCHITECTURES, **FURTHER_ARCHITECTURES}[architecture]
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(architecture, **{**special, **known, **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    _stir(model)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder, max_shard_size="40KB")
    return model


def save_small_llama(folder: Path, *, layers: int, vocabulary: int, positions: int) -> None:
    """A Llama whose greedy text is diverse, as it is drawn."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.3,
    )
    torch.manual_seed(3)
    LlamaForCausalLM(config).save_pretrained(folder)


def save_small_gpt2(folder: Path, *, layers: int, vocabulary: int, positions: int) -> None:
    """The other architecture, likewise."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=64,
        n_layer=layers,
        n_head=4,
        n_positions=positions,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(5)
    GPT2LMHeadModel(config).save_pretrained(folder)


@torch.no_grad()
def _stir(model: Any) -> None:
    """Weights so large that every layer changes what comes out, embeddings so small that a tied
    head does not just repeat its input.
    """
    embeddings = {id(model.get_input_embeddings().weight)}
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if id(parameter) in embeddings:
            parameter.copy_(noise * 0.02)
        elif parameter.dim() > 1 and "norm" not in name:
            parameter.copy_(noise * 1.5 / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(noise * 0.2)
