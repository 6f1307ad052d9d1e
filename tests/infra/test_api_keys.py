"""Making API keys, and where the local stack finds them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inference_server.api_keys import ApiKeys
from infra.api_keys import FILE_VARIABLE, local_api_keys_file, make_api_key
from infra.cli import app
from infra.local_error import LocalStackError


def test_a_key_works_where_its_entry_is_listed(tmp_path: Path) -> None:
    key, entry = make_api_key("ann", max_concurrent=3)
    other, _ = make_api_key("ann")
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([entry]))
    found = ApiKeys(path).find(key)
    assert found is not None
    assert (found.name, found.max_concurrent) == ("ann", 3)
    assert ApiKeys(path).find(other) is None
    assert key not in path.read_text()


def test_the_command_prints_the_entry_for_a_file_and_the_key_beside_it() -> None:
    result = CliRunner().invoke(app, ["api-key", "bob", "--tokens-per-minute", "500"])
    entry = json.loads(result.stdout)
    key = result.stderr.split()[0]
    assert entry["sha256"] == hashlib.sha256(key.encode()).hexdigest()
    assert (entry["name"], entry["tokens_per_minute"]) == ("bob", 500)


def test_the_local_stack_takes_the_file_that_a_variable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    assert local_api_keys_file() is None
    path = tmp_path / "keys.json"
    monkeypatch.setenv(FILE_VARIABLE, str(path))
    with pytest.raises(LocalStackError, match=FILE_VARIABLE):
        local_api_keys_file()
    path.write_text("[]")
    assert local_api_keys_file() == path
