from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.errors import ModelUnavailable
from runner.models.folder import resolve_model
from tests.hub_server import COMMIT, HubServer, Repository, serving
from tests.runner.models.fetching import resolved

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": b"second",
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "pytorch_model.bin": b"pickle",
    "onnx/config.json": b"{}",
}


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    repositories = {
        "org/tiny": Repository(FILES),
        "org/gated": Repository(FILES, access="gated"),
        "org/private": Repository(FILES, access="private"),
        "org/forbidden": Repository(FILES, access="forbidden"),
    }
    with serving(HubServer(repositories)) as endpoint:
        yield endpoint


def names(found: dict[str, Any]) -> set[str]:
    return {path.name for path in Path(found["path"]).rglob("*") if path.is_file()}


TEXT_FILES = {"config.json", "tokenizer.json", "model.safetensors.index.json"}
TENSOR_FILES = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("", TEXT_FILES),
        ("all", TEXT_FILES | TENSOR_FILES),
        (
            "model-00002-of-00002.safetensors",
            TEXT_FILES | {"model-00002-of-00002.safetensors"},
        ),
    ],
)
def test_only_what_is_wanted_comes_from_the_hub(
    hub: str, tmp_path: Path, files: str, expected: set[str]
) -> None:
    found = resolved(hub, tmp_path, "org/tiny", "", files)
    assert found["commit"] == COMMIT
    assert names(found) == expected


def test_the_commit_is_a_revision_and_the_cache_serves_without_a_hub(
    hub: str, tmp_path: Path
) -> None:
    first = resolved(hub, tmp_path, "org/tiny", "", "all")
    nobody = "http://127.0.0.1:9"
    assert resolved(nobody, tmp_path, "org/tiny", COMMIT, "all") == first
    assert resolved(nobody, tmp_path, "org/tiny", "", "all") == first


NO_MODEL = "model_name = 'org/none': the hub has no such model"
GATED = "model_name = 'org/gated': is gated"


@pytest.mark.parametrize(
    ("name", "revision", "token", "sentence"),
    [
        ("org/none", "", "", f"{NO_MODEL}, or it is private (401): give a token (splitstack:"),
        ("org/none", "", "hf_good", f"{NO_MODEL} (404) that this token may read"),
        ("org/private", "", "", "model_name = 'org/private': the hub has no such model, or it is"),
        ("org/gated", "", "", f"{GATED} (401): accept its terms at http://127.0.0.1:"),
        ("org/gated", "", "hf_stranger", f"{GATED}, and the token's owner has no access (403)"),
        ("org/tiny", "", "hf_old", "model_name = 'org/tiny': the hub refuses the token (401)"),
        ("org/forbidden", "", "hf_good", "model_name = 'org/forbidden': the token may not read it"),
        ("org/tiny", "v9", "", "model_revision = 'v9': org/tiny has no such revision"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    hub: str, tmp_path: Path, name: str, revision: str, token: str, sentence: str
) -> None:
    answer = resolved(hub, tmp_path, name, revision, "", HF_TOKEN=token)
    assert answer["error"].startswith(sentence)
    assert "\n" not in answer["error"]
    assert answer["kind"] == "ModelUnavailable"


def test_a_missing_tensor_file_is_named(hub: str, tmp_path: Path) -> None:
    found = resolved(hub, tmp_path, "org/tiny", "", "model-00009-of-00002.safetensors")
    assert "model-00009-of-00002.safetensors missing in" in found["error"]


def test_without_a_network_it_says_so_when_its_patience_ends(tmp_path: Path) -> None:
    answer = resolved("http://127.0.0.1:9", tmp_path, "org/tiny", "", "", patience_s=1)
    assert "is not in the cache, and the hub cannot be reached" in answer["error"]
    assert answer["kind"] == "ModelUnreachable"


def make_folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_bytes(FILES["config.json"])
    (path / "a.safetensors").write_bytes(b"tensors")
    return path


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "model")
    found = resolve_model(str(folder), weights=True)
    assert found.path == folder
    assert resolve_model(str(folder), found.commit) == found
    monkeypatch.chdir(tmp_path)
    assert resolve_model("model", tensor_files=["a.safetensors"]) == found


def test_a_folder_that_changed_is_not_the_same_model(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    before = resolve_model(str(folder)).commit
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelUnavailable, match=f"model_revision = '{before}'.*has no revisions"):
        resolve_model(str(folder), before)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("{folder}/none", "there is no such folder"),
        ("./none", "there is no such folder"),
        ("~/no such model", "there is no such folder"),
        ("models/none/here", "is neither a folder here nor a hub id"),
        ("no such model", "is neither a folder here nor a hub id"),
        ("{folder}", "the folder has no config.json"),
    ],
)
def test_a_wrong_name_is_refused(tmp_path: Path, name: str, sentence: str) -> None:
    name = name.format(folder=tmp_path)
    with pytest.raises(ModelUnavailable) as refusal:
        resolve_model(name)
    assert str(refusal.value).startswith(f"model_name = {name!r}: {sentence}")


def test_a_folder_without_the_wanted_tensors_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    with pytest.raises(ModelUnavailable, match=r"b\.safetensors missing in"):
        resolve_model(str(folder), tensor_files=["a.safetensors", "b.safetensors"])
    (folder / "a.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"\*\.safetensors missing in"):
        resolve_model(str(folder), weights=True)
