"""Loading somebody's model runs somebody's code."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from contract.models import TENSOR_INDEX
from runner.errors import InvalidField, ModelUnavailable, UnsupportedModel
from runner.master.text.model_text import ModelText
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel
from tests.advisories.conftest import Trap
from tests.small_models import LAYERS, make_small_model

CODE = "code_of_the_model"
AUTO_MAP = {
    "AutoConfig": f"{CODE}.Configuration",
    "AutoModelForCausalLM": f"{CODE}.Model",
    "AutoTokenizer": [f"{CODE}.Words", f"{CODE}.Words"],
}
CLASSES = """
from transformers import LlamaConfig, LlamaForCausalLM

class Configuration(LlamaConfig):
    model_type = "of_my_own"

class Model(LlamaForCausalLM):
    config_class = Configuration
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    make_small_model("llama", path)
    return path


def edit(file: Path, **changes: Any) -> None:
    document = json.loads(file.read_text("utf-8")) if file.exists() else {}
    file.write_text(json.dumps(document | changes), "utf-8")


def load(folder: Path) -> StageModel:
    return StageModel.load(Checkpoint(folder), (0, LAYERS), dtype="float32", device="cpu")


@pytest.fixture
def somebody_who_says_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks at the terminal whether a model's code is to be trusted."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))


@pytest.mark.usefixtures("somebody_who_says_yes")
@pytest.mark.parametrize("model_type", ["llama", "of_my_own"])
def test_python_files_of_a_model_are_not_imported(
    folder: Path, trap: Trap, model_type: str
) -> None:
    """Remote code: a config names classes in files beside it (`auto_map`), and the loader imports
    them, at a flag that is on, or at a question that somebody answers."""
    (folder / f"{CODE}.py").write_text(trap.source + CLASSES)
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        edit(folder / name, auto_map=AUTO_MAP, trust_remote_code=True)
    edit(folder / "config.json", model_type=model_type)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(trap.source)
    if model_type == "llama":
        assert load(folder).weight_bytes
    else:
        with pytest.raises(UnsupportedModel, match=r"of_my_own has code of its own .*never run"):
            load(folder)


def test_a_tokenizers_python_files_are_not_imported(
    tmp_path: Path, demo_folder: Path, trap: Trap
) -> None:
    """The same through the tokenizer, which is loaded by another process."""
    folder = tmp_path / "text"
    folder.mkdir()
    for file in demo_folder.iterdir():
        if file.suffix in (".json", ".jinja") and "safetensors" not in file.name:
            shutil.copy(file, folder)
    (folder / f"{CODE}.py").write_text(trap.source)
    changes = {"auto_map": AUTO_MAP, "tokenizer_class": "Words", "trust_remote_code": True}
    edit(folder / "tokenizer_config.json", **changes)
    assert ModelText.load(folder).encode_prompt("Hello")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
def test_weights_that_are_a_pickle_are_refused(folder: Path, trap: Trap, name: str) -> None:
    """Unsafe deserialization: a weight file is a pickle, under whichever name."""
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / name).write_bytes(trap.pickled)
    with pytest.raises(ModelUnavailable, match="safetensors"):
        load(folder)


def test_an_index_that_names_a_pickle_is_refused(folder: Path, trap: Trap) -> None:
    """The same, where the index of the shards says which file is read."""
    index = json.loads((folder / TENSOR_INDEX).read_text())["weight_map"]
    (folder / "weights.bin").write_bytes(trap.pickled)
    edit(folder / TENSOR_INDEX, weight_map=dict.fromkeys(index, "weights.bin"))
    with pytest.raises(ModelUnavailable, match=r"weights\.bin"):
        load(folder)


def test_pickles_beside_the_weights_are_left_alone(folder: Path, trap: Trap) -> None:
    """The same, by files that a loader finds and reads because they lie there."""
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(trap.pickled)
    assert load(folder).weight_bytes


def test_a_chat_template_has_no_way_out(tmp_path: Path, demo_folder: Path, trap: Trap) -> None:
    """Template injection: a model's chat template reaches the interpreter through attributes."""
    folder = tmp_path / "text"
    shutil.copytree(demo_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "chat_template.jinja").write_text(
        "{% set os = cycler.__init__.__globals__['os'] %}"
        f"{{{{ os.system('touch {trap.marker}') }}}}"
    )
    with pytest.raises((InvalidField, ModelUnavailable)):
        ModelText.load(folder).encode_chat([{"role": "user", "content": "Hello"}])


def test_the_trap_is_one(tmp_path: Path) -> None:
    """What the tests above rest on."""
    made = Trap(tmp_path / "first")
    pickle.loads(made.pickled)
    assert made.sprung
    made = Trap(tmp_path / "second")
    exec(made.source)
    assert made.sprung
