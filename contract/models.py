"""Models that both the plan and the runner know by name."""

from __future__ import annotations

DEMO_PREFIX = "demo:"
DEMO_MODEL = f"{DEMO_PREFIX}smollm2-135m-instruct"

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
