from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from contract.models import DEMO_MODEL
from runner.master.text.model_text import ModelText
from runner.models.folder import resolve_model
from tests.runner.master.scripted_engine import ScriptedEngine
from tests.runner.master.serving import served_engine

ANSWER = "Paris → the capital of France 🗼, naïve café.\nSecond line."


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    return resolve_model(DEMO_MODEL).path


@pytest.fixture(scope="session")
def demo_text(demo_folder: Path) -> ModelText:
    return ModelText.load(demo_folder)


@pytest.fixture
def engine(demo_text: ModelText) -> ScriptedEngine:
    """Answers every request with ANSWER and the end-of-sequence id."""
    ids = [*demo_text.tokenizer.encode(ANSWER).ids, demo_text.eos_ids[0]]
    return ScriptedEngine(lambda _request: ids)


@pytest.fixture
def url(engine: ScriptedEngine, demo_text: ModelText) -> Iterator[str]:
    with served_engine(engine, demo_text) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made
