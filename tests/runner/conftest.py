from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.small_models import save_small_llama

LAYERS = 6


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight Llama of six layers, whose greedy text is diverse."""
    folder = tmp_path_factory.mktemp("small-llama")
    torch.set_num_threads(1)
    save_small_llama(folder, layers=LAYERS, vocabulary=128, positions=256)
    return folder
