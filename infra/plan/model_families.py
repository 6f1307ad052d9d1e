"""What a config.json leaves unsaid: per model_type the parts that its layers have.

Counted from the modules that transformers builds; tests compare every row with the model itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.models import UNSPLITTABLE

Config = dict[str, Any]

_STATE_SPACE = "keeps a running state instead of keys and values (state-space or linear attention)"
_NO_INTERFACE = "computes attention of its own, outside transformers' attention interface"
_ENCODER_DECODER = "is an encoder-decoder model; only decoder models are split"

# model_type of every causal language model of the pinned transformers; a test compares.
CAUSAL_MODEL_TYPES: frozenset[str] = frozenset(
    json.loads(Path(__file__).with_name("causal_model_types.json").read_text("utf-8"))
)

REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "mamba", "mamba2", "falcon_mamba", "jamba", "zamba", "zamba2", "bamba",
            "granitemoehybrid", "nemotron_h", "qwen3_next", "rwkv", "xlstm", "recurrent_gemma",
            "lfm2", "lfm2_moe", "minimax", "kimi_linear", "olmo_hybrid", "qwen3_5", "qwen3_5_moe",
        ),
        _STATE_SPACE,
    ),
    **dict.fromkeys(
        ("falcon", "bloom", "mpt", "gptj", "codegen", "gpt_neo", "openai-gpt", "ctrl", "xlnet"),
        _NO_INTERFACE,
    ),
    **dict.fromkeys(
        ("t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian", "m2m_100", "led", "longt5",
         "blenderbot", "prophetnet", "switch_transformers", "t5gemma", "whisper"),
        _ENCODER_DECODER,
    ),
    **UNSPLITTABLE,
    **dict.fromkeys(("bert", "roberta", "electra", "distilbert"), "generates no text"),
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """The parts of a layer. A string names the config key that decides, with its default after =.

    `norms` counts norms of hidden_size per layer; `query_key_norm`: none, "head" (one of head_dim),
    "heads" (head_dim for each head, a vector over all) of queries and of keys. `grouped_heads`: the
    model looks at num_key_value_heads.
    """

    gated: bool = True
    query_bias: bool | str = False
    output_bias: bool | str = False
    feed_forward_bias: bool | str = False
    norms: int = 2
    norm_bias: bool = False
    query_key_norm: str | bool = False
    query_key_norm_if: str = ""
    tied: bool = False
    head_dim: int | None = None
    learned_positions_offset: int | None = None
    head_bias: bool = False
    sinks: bool = False
    experts_key: str = ""
    expert_width: str = "moe_intermediate_size"
    grouped_heads: bool = True
    expert_bias: bool = False


_ATTENTION_BIAS = "attention_bias=False"
LLAMA = Family(
    query_bias=_ATTENTION_BIAS, output_bias=_ATTENTION_BIAS, feed_forward_bias="mlp_bias=False"
)

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "granite": LLAMA,
    "smollm3": Family(
        query_bias=_ATTENTION_BIAS,
        output_bias=_ATTENTION_BIAS,
        feed_forward_bias="mlp_bias=False",
        tied=True,
    ),
    "qwen2": Family(query_bias=True),
    "qwen3": Family(
        query_bias=_ATTENTION_BIAS, output_bias=_ATTENTION_BIAS, query_key_norm="head", head_dim=128
    ),
    "qwen2_moe": Family(query_bias="qkv_bias=True", experts_key="num_experts"),
    "qwen3_moe": Family(
        query_bias=_ATTENTION_BIAS,
        output_bias=_ATTENTION_BIAS,
        query_key_norm="head",
        experts_key="num_experts",
    ),
    "mistral": Family(),
    "mixtral": Family(experts_key="num_local_experts", expert_width="intermediate_size"),
    "phi": Family(
        gated=False,
        query_bias=True,
        output_bias=True,
        feed_forward_bias=True,
        norms=1,
        norm_bias=True,
        query_key_norm="head",
        query_key_norm_if="qk_layernorm=False",
        head_bias=True,
    ),
    "phi3": Family(),
    "gemma2": Family(
        query_bias=_ATTENTION_BIAS, output_bias=_ATTENTION_BIAS, norms=4, tied=True, head_dim=256
    ),
    "gemma3_text": Family(
        query_bias=_ATTENTION_BIAS,
        output_bias=_ATTENTION_BIAS,
        norms=4,
        query_key_norm="head",
        tied=True,
        head_dim=256,
    ),
    "gpt2": Family(
        gated=False,
        grouped_heads=False,
        query_bias=True,
        output_bias=True,
        feed_forward_bias=True,
        norm_bias=True,
        tied=True,
        learned_positions_offset=0,
    ),
    "gpt_neox": Family(
        gated=False,
        grouped_heads=False,
        query_bias="attention_bias=True",
        output_bias="attention_bias=True",
        feed_forward_bias=True,
        norm_bias=True,
    ),
    "opt": Family(
        gated=False,
        grouped_heads=False,
        query_bias="enable_bias=True",
        output_bias="enable_bias=True",
        feed_forward_bias="enable_bias=True",
        norm_bias=True,
        tied=True,
        learned_positions_offset=2,
    ),
    "stablelm": Family(
        query_bias="use_qkv_bias=False",
        norm_bias=True,
        query_key_norm="heads",
        query_key_norm_if="qk_layernorm=False",
    ),
    "olmo2": Family(
        query_bias=_ATTENTION_BIAS, output_bias=_ATTENTION_BIAS, query_key_norm="heads"
    ),
    "cohere": Family(
        query_bias=_ATTENTION_BIAS,
        output_bias=_ATTENTION_BIAS,
        norms=1,
        query_key_norm="heads",
        query_key_norm_if="use_qk_norm=False",
        tied=True,
    ),
    "starcoder2": Family(
        gated=False,
        query_bias="use_bias=True",
        output_bias="use_bias=True",
        feed_forward_bias="use_bias=True",
        norm_bias=True,
        tied=True,
    ),
    "gpt_oss": Family(
        query_bias="attention_bias=True",
        output_bias="attention_bias=True",
        head_dim=64,
        sinks=True,
        experts_key="num_local_experts",
        expert_width="intermediate_size",
        expert_bias=True,
    ),
    "glm": Family(query_bias=_ATTENTION_BIAS, head_dim=128),
    "glm4": Family(query_bias=_ATTENTION_BIAS, norms=4, head_dim=128),
    "exaone4": Family(query_key_norm="head"),
    "deepseek_v3": Family(),
}


def decided(config: Config, what: bool | str) -> bool:
    """A part that is always there, never, or where the config says so."""
    if isinstance(what, bool):
        return what
    key, _, default = what.partition("=")
    return bool(config.get(key, default == "True"))
