from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from runner.errors import ModelUnavailable
from runner.models.folder import resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": b"second",
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "pytorch_model.bin": b"pickle",
    "onnx/config.json": b"{}",
}


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's API that snapshot_download uses, with one repository in it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, *, with_body: bool) -> None:
        status, headers, body = self.resource()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def resource(self) -> tuple[int, dict[str, str], bytes]:
        commit = {"X-Repo-Commit": COMMIT}
        path = self.path.partition("?")[0]
        if path in (
            "/api/models/org/tiny/revision/main",
            f"/api/models/org/tiny/revision/{COMMIT}",
        ):
            siblings = [{"rfilename": name} for name in FILES]
            body = json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode()
            return 200, {**commit, "Content-Type": "application/json"}, body
        if path == f"/api/models/org/tiny/tree/{COMMIT}":
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": name}
                for name, content in FILES.items()
            ]
            return 200, {**commit, "Content-Type": "application/json"}, json.dumps(rows).encode()
        prefix = f"/org/tiny/resolve/{COMMIT}/"
        name = path.removeprefix(prefix)
        if path.startswith(prefix) and name in FILES:
            return 200, {**commit, "ETag": f'"{name}"'}, FILES[name]
        if path.startswith("/api/models/org/tiny/revision/"):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if path.startswith("/api/models/org/gated"):
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def resolve_in_process(endpoint: str, cache: Path, *arguments: str) -> dict[str, str]:
    """In a process of its own: huggingface_hub reads HF_ENDPOINT when imported."""
    code = (
        "import json, sys\n"
        "from runner.models.folder import resolve_model\n"
        "from runner.errors import ModelUnavailable\n"
        "name, revision, cache, files = sys.argv[1:]\n"
        "wanted = {'all': {'weights': True}, '': {}}.get(files, {'tensor_files': [files]})\n"
        "try:\n"
        "    found = resolve_model(name, revision, cache, **wanted)\n"
        "    print(json.dumps({'path': str(found.path), 'commit': found.commit}))\n"
        "except ModelUnavailable as error:\n"
        "    print(json.dumps({'error': str(error)}))\n"
        "loaded = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    name, revision, files = arguments
    finished = subprocess.run(
        [sys.executable, "-c", code, name, revision, str(cache), files],
        env={"HF_ENDPOINT": endpoint, "PATH": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def names(found: dict[str, str]) -> set[str]:
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
    found = resolve_in_process(hub, tmp_path, "org/tiny", "", files)
    assert found["commit"] == COMMIT
    assert names(found) == expected


def test_the_commit_is_a_revision_and_the_cache_serves_without_a_hub(
    hub: str, tmp_path: Path
) -> None:
    first = resolve_in_process(hub, tmp_path, "org/tiny", "", "all")
    nobody = "http://127.0.0.1:9"
    assert resolve_in_process(nobody, tmp_path, "org/tiny", COMMIT, "all") == first
    assert resolve_in_process(nobody, tmp_path, "org/tiny", "", "all") == first


@pytest.mark.parametrize(
    ("name", "revision", "sentence"),
    [
        (
            "org/none",
            "",
            "model_name = 'org/none': is no folder here, and the hub has no such model",
        ),
        ("org/gated", "", "model_name = 'org/gated': is gated"),
        ("org/tiny", "v9", "model_revision = 'v9': org/tiny has no such revision"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    hub: str, tmp_path: Path, name: str, revision: str, sentence: str
) -> None:
    error = resolve_in_process(hub, tmp_path, name, revision, "")["error"]
    assert error.startswith(sentence)
    assert "\n" not in error


def test_a_missing_tensor_file_is_named(hub: str, tmp_path: Path) -> None:
    found = resolve_in_process(hub, tmp_path, "org/tiny", "", "model-00009-of-00002.safetensors")
    assert "model-00009-of-00002.safetensors missing in" in found["error"]


def test_without_a_network_it_says_so_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    error = resolve_in_process("http://127.0.0.1:9", tmp_path, "org/tiny", "", "")["error"]
    assert "is not in the cache, and the hub cannot be reached" in error
    assert time.monotonic() - began < 15


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
