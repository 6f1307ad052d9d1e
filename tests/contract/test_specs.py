"""The spec files: what is wrong is told, and never with a value that may be a secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contract.specs import (
    GroupSpec,
    ProxySpec,
    RankPart,
    SpecError,
    StageSpec,
    load,
    parse,
    read_management_key,
    read_token,
    render,
    spec_hash,
)


def test_what_is_rendered_is_read(tmp_path: Path) -> None:
    ranks = (RankPart((0, 2)), RankPart((2, 4), device_memory=2**33))
    spec = GroupSpec("small", "a-model", ranks, max_model_len=64, request_deadline_s=30)
    path = tmp_path / "spec.json"
    path.write_text(render(spec))
    assert load(path, GroupSpec) == spec
    stage = StageSpec("small", 1, memory_bytes=2**33, threads=2)
    path.write_text(render(stage))
    assert load(path, StageSpec) == stage
    proxy = ProxySpec("b", "small", "http://127.0.0.1:1", generation_config={"top_k": 3, "x": None})
    path.write_text(render(proxy))
    assert load(path, ProxySpec) == proxy


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"deployment_name": 5}, "deployment_name = 5: must be a string"),
        ({"max_model_len": "3000"}, "max_model_len = '3000': must be a whole number"),
        ({"max_model_len": True}, "max_model_len = True: must be a whole number"),
        ({"max_model_len": 1.5}, "max_model_len = 1.5: must be a whole number"),
        ({"max_model_len": 0}, "max_model_len = 0: must be at least 1"),
        ({"request_deadline_s": 0}, "request_deadline_s = 0: must be more than 0"),
        ({"ranks": []}, "ranks = []: must have at least 1"),
        ({"ranks": [{"layers": [0, "1"]}]}, "ranks[0].layers[1] = '1': must be"),
        ({"ranks": [{"device_memory": 1}]}, "ranks[0].layers: is required"),
        ({"ranks": [{"layers": [1, 2]}]}, "of rank 0, layers must begin at 0"),
        ({"ranks": [{"layers": [0, 2]}, {"layers": [3, 4]}]}, "of rank 1, layers must begin at 2"),
        ({"ranks": [{"layers": [0, 2]}, {"layers": [1, 4]}]}, "of rank 1, layers must begin at 2"),
        ({"ranks": [{"layers": [0, 0]}]}, "have one layer at least; they are [0, 0]"),
        ({"session_password": "hunter2"}, "session_password: unknown key"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, change: dict[str, object], told: str) -> None:
    ranks = [{"layers": [0, 2]}]
    document = {"deployment_name": "small", "model_name": "m", "ranks": ranks} | change
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


def test_a_body_that_is_half_there_is_told() -> None:
    text = render(GroupSpec("small", "a-model", (RankPart((0, 2)),))).encode()
    for length in (0, 1, len(text) // 2, len(text) - 2):
        with pytest.raises(SpecError, match="the body: is not JSON"):
            parse(text[:length], GroupSpec, "PUT /group/spec", "the body")


def test_a_whole_number_of_seconds_has_one_hash() -> None:
    """Who renders a spec and who has read it call it by the same name."""
    spec = GroupSpec("small", "a-model", (RankPart((0, 2)),), request_deadline_s=30.0)
    assert spec_hash(parse(render(spec).encode(), GroupSpec, "")) == spec_hash(spec)
