from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

LAYERS = 6


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight Llama of six layers, whose greedy text is diverse."""
    folder = tmp_path_factory.mktemp("small-llama")
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    torch.manual_seed(3)
    torch.set_num_threads(1)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder
