"""Making API keys, and where the local stack finds them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from contract.api_keys import ApiKeysError, read_api_keys
from inference_server.keys.api_keys import ApiKeys
from infra.cli.app import app
from infra.stack.api_keys import (
    FILE_VARIABLE,
    local_api_keys_file,
    make_api_key,
)
from infra.stack.faults import UserError


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


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"sha256": "sk-a-key"}, "[0].sha256: String should match pattern"),
        ({"name": ""}, "[0].name: String should have at least 1 character"),
        ({"max_concurent": 1}, "[0].max_concurent: unknown key"),
        ({"tokens_per_minute": 0}, "[0].tokens_per_minute: must be at least 1"),
        ({}, "name: two entries have the same"),
    ],
)
def test_a_wrong_entry_is_told_without_its_values(
    tmp_path: Path, change: dict[str, object], wrong: str
) -> None:
    entry = make_api_key("ann")[1] | change
    entries = [entry, make_api_key("ann")[1]] if not change else [entry]
    with pytest.raises(ApiKeysError) as told:
        read_api_keys(json.dumps(entries))
    (fault,) = told.value.faults
    assert wrong in fault
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(ApiKeysError) as refused:
        ApiKeys(path)
    assert fault in str(refused.value)
    assert "sk-a-key" not in str(refused.value)


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
    with pytest.raises(UserError, match=FILE_VARIABLE):
        local_api_keys_file()
    path.write_text("[]")
    assert local_api_keys_file() == path
