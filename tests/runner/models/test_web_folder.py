"""A model below an address: the folder of a web server that has ranges and ETags."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.certificates import Authority
from tests.hub_server import Fault, HubServer, Repository, serving
from tests.runner.models.fetching import kill_midway, resolved

SHARD_BYTES = 512 * 1024
SHARDS = [f"model-{place}.safetensors" for place in (1, 2, 3)]
INDEX = json.dumps({"weight_map": {f"{name}.weight": name for name in SHARDS}}).encode()
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": INDEX,
    "chat_template.jinja": b"{{ messages }}",
    "modeling_mine.py": b"raise SystemExit",
} | {name: random.Random(name).randbytes(SHARD_BYTES) for name in SHARDS}
WANTED = {name: content for name, content in FILES.items() if not name.endswith(".py")}


@pytest.fixture
def server() -> HubServer:
    return HubServer({"a/folder": Repository(dict(FILES))})


@pytest.fixture
def address(server: HubServer) -> Iterator[str]:
    with serving(server) as url:
        yield f"{url}/a/folder/resolve/main"


def contents(path: str) -> dict[str, bytes]:
    files = [path for path in Path(path).iterdir() if path.is_file() and path.name[0] != "."]
    return {path.name: path.read_bytes() for path in files}


def test_a_folder_of_a_web_server_is_fetched(
    server: HubServer, address: str, tmp_path: Path
) -> None:
    found = resolved("", tmp_path, address, "", "all")
    assert contents(found["path"]) == WANTED
    assert found["fetched"] == found["wanted"] == sum(map(len, WANTED.values()))
    assert not server.downloads[0].authorized
    one = resolved("", tmp_path / "other", f"{address}/", "", SHARDS[1])
    assert set(contents(one["path"])) == {*WANTED} - {SHARDS[0], SHARDS[2]}
    assert one["commit"] == found["commit"]


def test_what_is_here_needs_no_server(server: HubServer, tmp_path: Path) -> None:
    with serving(server) as url:
        address = f"{url}/a/folder/resolve/main"
        found = resolved("", tmp_path, address, "", "all")
    for revision in (found["commit"], ""):
        assert resolved("", tmp_path, address, revision, "all", patience_s=0) == found


def test_a_kill_keeps_what_has_come(server: HubServer, address: str, tmp_path: Path) -> None:
    kill_midway(server, 2.5 * SHARD_BYTES, "", tmp_path, address)
    found = resolved("", tmp_path, address)
    assert contents(found["path"]) == WANTED
    assert server.served[SHARDS[2]] < 1.5 * SHARD_BYTES


def test_a_file_that_changed_meanwhile_is_not_mended_with_the_new_one(
    server: HubServer, address: str, tmp_path: Path
) -> None:
    server.faults = [Fault(SHARDS[0], cut_after=100_000, times=99)]
    digest = resolved("", tmp_path, address, "", "")["commit"]
    failed = resolved("", tmp_path, address, digest, SHARDS[0], patience_s=0)
    assert failed["kind"] == "ModelUnreachable"
    server.faults = []
    new = random.Random(7).randbytes(SHARD_BYTES)
    server.repositories["a/folder"].files[SHARDS[0]] = new
    found = resolved("", tmp_path, address, "", SHARDS[0])
    assert found["commit"] != digest
    assert contents(found["path"])[SHARDS[0]] == new
    refused = resolved("", tmp_path / "other", address, digest, "")
    changed = f"what {address} holds has changed; it is {found['commit']} now"
    assert refused["error"] == f"model_revision = '{digest}': {changed}"


@pytest.mark.parametrize(
    ("path", "kind", "told"),
    [
        ("a/none/resolve/main", "ModelUnavailable", "/config.json answers 401"),
        ("nothing/here", "ModelUnavailable", "there is no config.json"),
    ],
)
def test_what_the_server_does_not_have(
    address: str, tmp_path: Path, path: str, kind: str, told: str
) -> None:
    name = address.replace("a/folder/resolve/main", path)
    answer = resolved("", tmp_path, name, "", "")
    assert answer["kind"] == kind
    assert answer["error"].startswith(f"model_name = '{name}': ")
    assert answer["error"].endswith(told)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    answer = resolved("", tmp_path, "http://127.0.0.1:9/model", "", "", patience_s=1)
    assert answer["kind"] == "ModelUnreachable"
    assert answer["error"].startswith(
        "model_name = 'http://127.0.0.1:9/model': cannot be reached: "
    )


def test_a_missing_weight_file_is_named(server: HubServer, address: str, tmp_path: Path) -> None:
    del server.repositories["a/folder"].files[SHARDS[1]]
    answer = resolved("", tmp_path, address, "", SHARDS[1])
    assert f"{SHARDS[1]} missing in" in answer["error"]


def test_an_authority_of_the_sites_own(server: HubServer, tmp_path: Path) -> None:
    """As ca_bundle names it to the process: without it the server is not trusted."""
    authority = Authority(tmp_path)
    certificate = authority.server("models", "127.0.0.1")
    trusted = {"SSL_CERT_FILE": str(authority.certificate)}
    with serving(server, certificate) as url:
        address = f"{url}/a/folder/resolve/main"
        refused = resolved("", tmp_path / "refused", address, "", "all", patience_s=1)
        assert "certificate" in refused["error"].lower()
        found = resolved("", tmp_path / "cache", address, "", "all", **trusted)
    assert contents(found["path"]) == WANTED
