"""The spec files: what is wrong is told, and never with a value that may be a secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contract.specs import (
    GroupSpec,
    ProxySpec,
    RankSpec,
    SpecError,
    load,
    read_management_key,
    read_token,
    render,
)


def test_what_is_rendered_is_read(tmp_path: Path) -> None:
    ranks = (RankSpec(0, (0, 2)), RankSpec(1, (2, 4), memory_bytes=2**33, threads=2))
    spec = GroupSpec("small", "a-model", ranks, max_model_len=64, request_deadline_s=30)
    path = tmp_path / "spec.json"
    path.write_text(render(spec))
    assert load(path, GroupSpec) == spec
    proxy = ProxySpec("b", "small", "http://127.0.0.1:1", generation_config={"top_k": 3, "x": None})
    path.write_text(render(proxy))
    assert load(path, ProxySpec) == proxy


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"deployment_name": 5}, "deployment_name = 5: must be a string"),
        ({"master_port": "3000"}, "master_port = '3000': must be a whole number"),
        ({"master_port": True}, "master_port = True: must be a whole number"),
        ({"master_port": 1.5}, "master_port = 1.5: must be a whole number"),
        ({"ranks": [{"rank": 0, "layers": [0, "1"]}]}, "ranks[0].layers[1] = '1': must be"),
        ({"ranks": [{"rank": 0}]}, "ranks[0].layers: is required"),
        ({"session_password": "hunter2"}, "session_password: unknown key"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, change: dict[str, object], told: str) -> None:
    document = {"deployment_name": "small", "model_name": "m", "ranks": []} | change
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(document))
    with pytest.raises(SpecError) as refused:
        load(path, GroupSpec)
    assert told in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_files_given_in_each_others_place_do_not_show_the_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("a-secret-of-the-whole-group\n")
    with pytest.raises(SpecError, match="is not JSON") as refused:
        load(path, GroupSpec)
    assert "secret" not in str(refused.value)
    assert read_token(path) == b"a-secret-of-the-whole-group"
    path.write_text("short")
    with pytest.raises(SpecError, match="holds 5 bytes; at least 16 are needed"):
        read_token(path)
    with pytest.raises(SpecError, match=r"--management-key-file .*/token: holds 5 bytes"):
        read_management_key(path)
