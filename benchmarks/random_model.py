"""A random-weight Llama of about 350 M parameters with the demo model's tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from contract.models import DEMO_MODEL
from runner.models.folder import resolve_model

VOCABULARY = 49152
HIDDEN, INTERMEDIATE, LAYERS = 1024, 2816, 22
HEADS, KEY_VALUE_HEADS = 16, 8


def make_random_model(folder: Path, layers: int = LAYERS) -> Path:
    """Write the model to `folder` (once) and return it. It never samples an end of sequence."""
    if (folder / "config.json").exists():
        return folder
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = None
    model.save_pretrained(partial, max_shard_size="300MB")
    demo = resolve_model(DEMO_MODEL).path
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (demo / name).exists():
            shutil.copy(demo / name, partial / name)
    partial.rename(folder)
    return folder
