"""Models that both the plan and the runner know by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DEMO_PREFIX = "demo:"
DEMO_MODEL = f"{DEMO_PREFIX}smollm2-135m-instruct"
DEMO_TITLE = "SmolLM2-135M-Instruct"


def model_title(model_name: str) -> str:
    """What people read: of a hub id or a folder the last part."""
    if model_name == DEMO_MODEL:
        return DEMO_TITLE
    return model_name.rstrip("/").rpartition("/")[2] or model_name


# A table that a rank alone both looks up and computes its logits with is packed for the latter as a
# second copy up to this size, on the CPU: half the time of a decode's head for 108 MiB in the demo
# model. Larger ones are used where they lie.
TIED_COPY_LIMIT_BYTES = 128 * 2**20

_SHARED = "has inputs or KV that several layers share"
_CHUNKED = "uses chunked attention"
# model_type -> why it cannot be split. Only what a forward with a few tokens does not show: the
# stage finds everything else by itself, the plan has its own list of that.
UNSPLITTABLE = {
    "gemma3n": _SHARED,
    "gemma3n_text": _SHARED,
    "gemma4": _SHARED,
    "gemma4_text": _SHARED,
    "llama4": _CHUNKED,
    "llama4_text": _CHUNKED,
    "falcon_h1": "keeps a running state beside its keys and values",
}

# Files of a model, as transformers' save_pretrained names them.
CONFIG = "config.json"
TENSOR_INDEX = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
TOKENIZER = "tokenizer.json"

# Of a weight that can be served as it lies in its file; safetensors' names. Other types are numbers
# that mean something with a scale only.
WEIGHT_DTYPES = ("F16", "BF16", "F32", "F64")
# Where ModelOpt, AutoGPTQ and AutoAWQ say how a model is quantized whose config.json does not.
QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")


def quantization_file(folder: Path) -> str:
    """Which of QUANTIZATION_FILES a model's folder has; "" for none."""
    return next((name for name in QUANTIZATION_FILES if (folder / name).is_file()), "")


def needs_own_code(model_type: object) -> str:
    """Of a config.json that names code beside it (auto_map), where transformers has none."""
    return (
        f"model_type {model_type} has code of its own (auto_map in config.json), which is never "
        "run, and transformers has no causal language model of this type"
    )


def longest_text(max_positions: int, rope: object) -> int:
    """Tokens that a model can hold: its max_position_embeddings, or what YaRN scales them to.

    `rope` is the configuration's rope_parameters or rope_scaling, or None; those of several kinds
    of layers lie one level deeper.
    """
    found = rope if isinstance(rope, dict) else {}
    nested = [entry for entry in found.values() if isinstance(entry, dict)]
    return max(max_positions, *(_scaled(max_positions, entry) for entry in nested or [found]))


def _scaled(max_positions: int, rope: dict[str, Any]) -> int:
    """A configuration that does not say what was scaled means what it calls its maximum."""
    factor = rope.get("factor")
    if (rope.get("rope_type") or rope.get("type")) != "yarn" or not isinstance(factor, int | float):
        return 0
    original = rope.get("original_max_position_embeddings")
    return int(factor * (original if isinstance(original, int) else max_positions))
