"""A small model of random weights: quick to load and to compute, and fond of every word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from runner.models.folder import resolve_model
from tests.small_models import save_small_gpt2, save_small_llama

SAVE = {"llama": save_small_llama, "gpt2": save_small_gpt2}


def save_random_model(folder: Path, layers: int, architecture: str = "llama") -> str:
    """Small layers of random weights behind the demo model's tokenizer; returns the folder."""
    demo = Path(resolve_model("demo:smollm2-135m-instruct").path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo / name, folder / name)
    vocabulary = json.loads((demo / "config.json").read_text())["vocab_size"]
    SAVE[architecture](folder, layers=layers, vocabulary=vocabulary, positions=1024)
    return str(folder)
