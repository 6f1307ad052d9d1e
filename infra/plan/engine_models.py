"""Which models another engine (platform vllm) can serve over these ranks, as far as a config says.

What it knows beyond that it says itself when it starts, and the group's reason repeats it.
"""

from __future__ import annotations

from contract.models import needs_own_code
from infra.plan.model_families import CAUSAL_MODEL_TYPES, REFUSED, Config
from infra.plan.model_shape import UnknownShape, UnsplittableModel

# Of REFUSED these words are about models; the others are about how our own stages split.
_NO_DECODER = ("is an encoder-decoder model", "generates no text")


def refuse_unservable(config: Config, tensor_parallel: int) -> None:
    """Raises UnsplittableModel: not a decoder of text, code of its own, heads that do not divide;
    UnknownShape where config.json does not say."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise UnknownShape("config.json has no model_type")
    why = REFUSED.get(model_type, "")
    if why.startswith(_NO_DECODER):
        raise UnsplittableModel(f"model_type {model_type} {why}")
    if config.get("is_encoder_decoder"):
        raise UnsplittableModel(f"model_type {model_type} is an encoder-decoder model")
    if config.get("auto_map") and model_type not in CAUSAL_MODEL_TYPES:
        raise UnsplittableModel(needs_own_code(model_type))
    if "vision_config" in config or "audio_config" in config:
        raise UnsplittableModel(
            f"model_type {model_type} is multimodal; only text models are split"
        )
    _check_heads(config, tensor_parallel)


def _check_heads(config: Config, tensor_parallel: int) -> None:
    heads = config.get("num_attention_heads", config.get("n_head"))
    grouped = config.get("num_key_value_heads", heads)
    if not isinstance(heads, int) or not isinstance(grouped, int):
        return
    if heads % tensor_parallel:
        raise UnsplittableModel(
            f"its {heads} attention heads cannot be divided by common_params.tensor_parallel "
            f"({tensor_parallel}): take a divisor of {heads}"
        )
    # Fewer than devices are repeated on each of them.
    if grouped % tensor_parallel and tensor_parallel % grouped:
        raise UnsplittableModel(
            f"its {grouped} key-value heads and common_params.tensor_parallel "
            f"({tensor_parallel}) do not divide one another: take another number of devices"
        )
