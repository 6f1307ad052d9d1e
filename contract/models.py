"""Models that both the plan and the runner know by name."""

from __future__ import annotations

from pathlib import Path

DEMO_PREFIX = "demo:"
DEMO_MODEL = f"{DEMO_PREFIX}smollm2-135m-instruct"

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

# Of a weight that can be served as it lies in its file; safetensors' names. Other types are numbers
# that mean something with a scale only.
WEIGHT_DTYPES = ("F16", "BF16", "F32", "F64")
# Where ModelOpt, AutoGPTQ and AutoAWQ say how a model is quantized whose config.json does not.
QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")


def quantization_file(folder: Path) -> str:
    """Which of QUANTIZATION_FILES a model's folder has; "" for none."""
    return next((name for name in QUANTIZATION_FILES if (folder / name).is_file()), "")
