"""A small model of random weights: quick to load and to compute, and fond of every word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import transformers

from runner.models.folder import resolve_model


def save_random_model(folder: Path, layers: int) -> str:
    """Small layers of random weights behind the demo model's tokenizer; returns the folder."""
    demo = Path(resolve_model("demo:smollm2-135m-instruct").path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo / name, folder / name)
    config = transformers.LlamaConfig(
        vocab_size=json.loads((demo / "config.json").read_text())["vocab_size"],
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
    )
    torch.manual_seed(3)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)
