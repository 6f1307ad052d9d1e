"""The file of hashed keys, and what happens when it changes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from contract.api_keys import ApiKeysError
from inference_server.keys import api_keys
from inference_server.keys.api_keys import ApiKeys


def entry(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(f"key of {name}".encode()).hexdigest(), **more}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(api_keys, "CHECK_INTERVAL_S", 0)
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([entry("ann", max_concurrent=2), entry("bob")]))
    return path


def test_keys_are_found_by_their_hash(path: Path) -> None:
    keys = ApiKeys(path)
    ann = keys.find("key of ann")
    assert ann is not None
    assert (ann.name, ann.max_concurrent, ann.tokens_per_minute) == ("ann", 2, None)
    assert keys.find("key of eve") is None
    assert keys.find("") is None
    assert keys.find("\udcff\udcfe") is None
    assert "key of" not in path.read_text()
    assert ann.sha256 not in repr(ann)


def test_a_key_that_is_taken_out_is_refused_and_a_new_one_works(path: Path) -> None:
    keys = ApiKeys(path)
    assert keys.find("key of ann")
    path.write_text(json.dumps([entry("carl")]))
    assert keys.find("key of ann") is None
    assert keys.find("key of carl")
    path.write_text("[]")
    assert keys.find("key of carl") is None


def test_a_mounted_secret_changes_by_its_links(path: Path, tmp_path: Path) -> None:
    for name in ("ann", "bob"):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "keys.json"
        file.write_text(json.dumps([entry(name)]))
        os.utime(file, (1, 1))
    (tmp_path / "data").symlink_to("ann")
    mounted = tmp_path / "mounted.json"
    mounted.symlink_to("data/keys.json")
    keys = ApiKeys(mounted)
    assert keys.find("key of ann")
    (tmp_path / "data2").symlink_to("bob")
    (tmp_path / "data2").rename(tmp_path / "data")
    assert keys.find("key of ann") is None
    assert keys.find("key of bob")


@pytest.mark.parametrize("content", ["{", "{}", '[{"name": "x"}]', None])
def test_a_file_that_breaks_leaves_the_former_keys(
    path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ApiKeys(path)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert keys.find("key of ann")
    assert keys.find("key of eve") is None
    assert "the former ones stay" in caplog.text


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "must be a list"),
        ([{"name": "x", "sha256": "sk-secret"}], r"\[0\]\.sha256: "),
        ([entry("x", max_concurrent=0)], r"\[0\]\.max_concurrent: "),
        ([entry("x", tokens_per_minute="7")], r"\[0\]\.tokens_per_minute: "),
        ([entry("x", more=1)], r"\[0\]\.more: "),
        ([entry("x"), entry("x")], "name: two entries have the same"),
    ],
)
def test_a_bad_file_is_refused_at_the_start(path: Path, document: Any, said: str) -> None:
    path.write_text(json.dumps(document))
    with pytest.raises(ApiKeysError, match=said) as refused:
        ApiKeys(path)
    assert str(path) in str(refused.value)
    assert "sk-secret" not in str(refused.value)


def test_no_file_is_no_open_door(tmp_path: Path) -> None:
    with pytest.raises(ApiKeysError, match="cannot be read"):
        ApiKeys(tmp_path / "nothing.json")
