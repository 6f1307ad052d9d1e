"""A Hugging Face config.json -> layers, parameters and KV values of each. Pure, no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from contract.models import longest_text, needs_own_code
from contract.quantization.scheme import BadQuantization
from contract.quantization.table import read_scheme, scheme_of
from infra.plan.model_families import (
    CAUSAL_MODEL_TYPES,
    FAMILIES,
    LLAMA,
    REFUSED,
    Config,
    Family,
    decided,
)

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MAX_LAYERS = 4096
_ROPE_KEYS = ("rope_parameters", "rope_scaling")
# transformers' names first; the others are what older configs call the same.
_ALIASES = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "num_layers", "n_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "intermediate_size": ("n_inner", "ffn_dim"),
    "num_experts": ("num_local_experts",),
    "max_position_embeddings": ("n_positions", "n_ctx"),
}


class UnsplittableModel(ValueError):
    """A model that cannot be split; the message says which and why."""


class UnknownShape(ValueError):
    """A config.json that does not say what the plan needs; the message names the key."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model, in parameters (weights) and values (KV); tuples have one item per layer.

    `head_parameters` is what the last rank reads for its logits: of a tied model the embedding
    again, which the last rank then holds as well. `end_parameters` are between the last layer and
    the head: the final norm. `exact` is False for a model_type that is not in `model_families`: it
    is taken for a Llama. `stored_as` says how quantized weights lie in their files, "" for whole.
    """

    model_type: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    layer_parameters: tuple[int, ...]
    kv_values_per_token: tuple[int, ...]
    embedding_parameters: int
    head_parameters: int
    end_parameters: int
    tied: bool
    max_positions: int | None
    dtype: str
    exact: bool = True
    stored_as: str = ""

    @property
    def parameters(self) -> int:
        """Of the whole model, a tied head counted once."""
        head = 0 if self.tied else self.head_parameters
        rest = self.embedding_parameters + self.end_parameters + head
        return sum(self.layer_parameters) + rest


def model_shape(config: Config, refuse: Callable[[Config], None] | None = None) -> ModelShape:
    """The shape that a config.json describes.

    Raises UnsplittableModel for what cannot be split, by `refuse` where not by our own stages, and
    UnknownShape where a key is missing.
    """
    (refuse or refuse_unsplittable)(config)
    model_type = _model_type(config)
    family = FAMILIES.get(model_type, LLAMA)
    hidden, layers = _size(config, "hidden_size"), _size(config, "num_hidden_layers")
    vocabulary = _size(config, "vocab_size")
    if layers > MAX_LAYERS:
        raise UnknownShape(
            f"config.json has num_hidden_layers {layers}; no more than {MAX_LAYERS} are planned"
        )
    norm = hidden * (2 if family.norm_bias else 1)
    positions = _optional_size(config, "max_position_embeddings")
    embedding_width = _optional_size(config, "word_embed_proj_dim") or hidden
    embedding = vocabulary * embedding_width
    if family.learned_positions_offset is not None and positions:
        embedding += (positions + family.learned_positions_offset) * hidden
    # OPT's embedding and head may be narrower than its layers: a matrix lies between.
    between = hidden * embedding_width if embedding_width != hidden else 0
    # StableLM's parallel layers share one norm.
    norms = 1 if config.get("use_parallel_residual") and model_type == "stablelm" else family.norms
    attention, kv_values = _attention(config, family, hidden)
    return ModelShape(
        model_type=model_type,
        num_layers=layers,
        hidden_size=hidden,
        vocab_size=vocabulary,
        layer_parameters=tuple(
            attention + norms * norm + _feed_forward(config, family, hidden, layer)
            for layer in range(layers)
        ),
        kv_values_per_token=(kv_values,) * layers,
        embedding_parameters=embedding + between,
        head_parameters=vocabulary * embedding_width + (vocabulary if family.head_bias else 0),
        end_parameters=between + (norm if config.get("do_layer_norm_before", True) else 0),
        tied=bool(config.get("tie_word_embeddings", family.tied)),
        max_positions=positions and longest_text(positions, _rope(config)),
        dtype=_dtype(config),
        exact=model_type in FAMILIES,
        stored_as=_stored_as(config),
    )


def refuse_unsplittable(config: Config) -> None:
    """Raises UnsplittableModel for a model that the runner cannot split; says which and why."""
    model_type = _model_type(config)
    if model_type in REFUSED:
        raise UnsplittableModel(f"model_type {model_type} {REFUSED[model_type]}")
    if config.get("auto_map") and model_type not in CAUSAL_MODEL_TYPES:
        raise UnsplittableModel(needs_own_code(model_type))
    if config.get("is_encoder_decoder"):
        raise UnsplittableModel(f"model_type {model_type} is an encoder-decoder model")
    if (quantization := config.get("quantization_config")) is not None:
        try:
            read_scheme(quantization)
        except BadQuantization as error:
            raise UnsplittableModel(str(error)) from error
    if "vision_config" in config or "audio_config" in config:
        raise UnsplittableModel(
            f"model_type {model_type} is multimodal; only text models are split"
        )
    for key in _ROPE_KEYS:
        rope = config.get(key)
        kind = (rope.get("rope_type") or rope.get("type")) if isinstance(rope, dict) else None
        if kind == "dynamic":
            raise UnsplittableModel(
                f"{key}.rope_type dynamic changes with the longest request of a step; "
                "linear, yarn, llama3 and longrope do not"
            )


def _model_type(config: Config) -> str:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise UnknownShape("config.json has no model_type")
    return model_type


def _rope(config: Config) -> Any:
    return next((config[key] for key in _ROPE_KEYS if config.get(key)), None)


def _attention(config: Config, family: Family, hidden: int) -> tuple[int, int]:
    """Parameters of one layer's attention, and its KV values per token."""
    heads = _size(config, "num_attention_heads")
    if "kv_lora_rank" in config:
        return _latent_attention(config, hidden, heads)
    grouped = _optional_size(config, "num_key_value_heads") if family.grouped_heads else None
    kv_heads = grouped or heads
    default = family.head_dim if family.head_dim is not None else hidden // heads
    head_dim = _optional_size(config, "head_dim") or default
    if not head_dim:
        raise UnknownShape(f"config.json has more num_attention_heads ({heads}) than hidden_size")
    queries, keys = heads * head_dim, kv_heads * head_dim
    parameters = hidden * (queries + 2 * keys) + queries * hidden
    if decided(config, family.query_bias):
        parameters += queries + 2 * keys
    if decided(config, family.output_bias):
        parameters += hidden
    if family.query_key_norm and decided(config, family.query_key_norm_if or True):
        widths = 2 * head_dim if family.query_key_norm == "head" else queries + keys
        parameters += widths * (2 if family.norm_bias and family.query_key_norm == "head" else 1)
    if family.sinks:
        parameters += heads
    return parameters, 2 * keys


def _latent_attention(config: Config, hidden: int, heads: int) -> tuple[int, int]:
    """DeepSeek's multi-head latent attention; its KV is held as attention gets it, expanded."""
    rank = _size(config, "kv_lora_rank")
    rope, plain = _size(config, "qk_rope_head_dim"), _size(config, "qk_nope_head_dim")
    value = _size(config, "v_head_dim")
    bias = bool(config.get("attention_bias"))
    query_rank = _optional_size(config, "q_lora_rank")
    queries = heads * (rope + plain)
    if query_rank:
        parameters = hidden * query_rank + query_rank + query_rank * queries
        parameters += query_rank if bias else 0
    else:
        parameters = hidden * queries
    parameters += hidden * (rank + rope) + rank + rank * heads * (plain + value)
    parameters += heads * value * hidden + (rank + rope + hidden if bias else 0)
    return parameters, heads * (rope + plain + value)


def _feed_forward(config: Config, family: Family, hidden: int, layer: int) -> int:
    if "n_routed_experts" in config:
        return _deepseek_experts(config, hidden, layer)
    if family.experts_key and _is_sparse(config, layer):
        return _experts(config, family, hidden)
    width = _optional_size(config, "intermediate_size") or 4 * hidden
    parameters = (3 if family.gated else 2) * hidden * width
    if decided(config, family.feed_forward_bias):
        parameters += (2 if family.gated else 1) * width + hidden
    return parameters


def _is_sparse(config: Config, layer: int) -> bool:
    step = _optional_size(config, "decoder_sparse_step") or 1
    dense = config.get("mlp_only_layers")
    return not (isinstance(dense, list) and layer in dense) and (layer + 1) % step == 0


def _experts(config: Config, family: Family, hidden: int) -> int:
    count = _size(config, family.experts_key)
    width = _optional_size(config, family.expert_width) or _size(config, "intermediate_size")
    parameters = count * 3 * hidden * width + hidden * count
    if family.expert_bias:
        parameters += count * (2 * width + hidden) + count
    shared = _optional_size(config, "shared_expert_intermediate_size")
    if shared:
        parameters += 3 * hidden * shared + hidden
    return parameters


def _deepseek_experts(config: Config, hidden: int, layer: int) -> int:
    if layer < (_optional_size(config, "first_k_dense_replace") or 0):
        return 3 * hidden * _size(config, "intermediate_size")
    count, width = _size(config, "n_routed_experts"), _size(config, "moe_intermediate_size")
    shared = _optional_size(config, "n_shared_experts") or 0
    # The router has a weight per expert and the correction bias of its scores.
    return 3 * hidden * width * (count + shared) + hidden * count + count


def _optional_size(config: Config, key: str) -> int | None:
    for name in (key, *_ALIASES.get(key, ())):
        value: Any = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _size(config: Config, key: str) -> int:
    value = _optional_size(config, key)
    if value is None:
        raise UnknownShape(f"config.json has no {key} (a whole number above 0)")
    return value


def _stored_as(config: Config) -> str:
    """What is not read here another engine may read."""
    scheme = scheme_of(config)
    return "" if scheme is None else scheme.title


def _dtype(config: Config) -> str:
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return name if name in DTYPE_BYTES else "float32"
