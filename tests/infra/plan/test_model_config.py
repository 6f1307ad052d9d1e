"""config.json out of a folder, the hub cache, or a hub on loopback."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub.constants
import pytest

from contract.models import DEMO_MODEL
from infra.plan.model_config import read_model_config
from infra.plan.model_files import BadModel
from tests.hub_server import COMMIT, TOKEN, HubServer, Repository, serving

CONFIG = {"model_type": "llama"}
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": b"{}",
    "model.safetensors": b"1234567",
}
INDEX = json.dumps({"weight_map": {"a.weight": "model-1.safetensors", "b": "model-2.safetensors"}})


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch) -> Iterator[HubServer]:
    hub = HubServer({"some/model": Repository(dict(FILES), revisions=("main", "pr/1"))})
    with serving(hub) as url:
        monkeypatch.setenv("HF_ENDPOINT", f"{url}/")
        yield hub


def test_the_hub_is_asked(hub):
    for revision in ("", "main", "pr/1", COMMIT):
        found = read_model_config("some/model", revision)
        assert (found.config, found.commit) == (CONFIG, COMMIT)
        assert found.weight_files == {"model.safetensors": 7}


SAID = {
    ("public", "hf_old"): "the hub refuses the token (401)",
    ("private", ""): "the hub has no such model, or it is private (401): give a token",
    ("private", "hf_stranger"): "the hub has no such model (404) that this token may read",
    ("gated", ""): "is gated (401): accept its terms at",
    ("gated", "hf_stranger"): "is gated, and the token's owner has no access (403)",
    ("forbidden", "hf_good"): "the token may not read it (403)",
}


@pytest.mark.parametrize(("access", "token"), SAID)
def test_each_refusal_has_its_sentence(hub, access, token):
    hub.repositories["some/model"].access = access
    found = read_model_config("some/model", "", token)
    assert found.config is None
    assert found.reason.startswith(SAID[access, token])


def test_a_model_and_a_revision_that_the_hub_does_not_have(hub):
    assert read_model_config("some/other").reason.startswith("the hub has no such model")
    assert read_model_config("some/model", "v9").reason == (
        "model_revision = 'v9': some/model has no such revision (404)"
    )


@pytest.mark.parametrize("access", ["gated", "private"])
def test_a_token_opens_it(hub, access, monkeypatch, tmp_path):
    """The stack's comes first, then the environment's, then the token file."""
    hub.repositories["some/model"].access = access
    assert read_model_config("some/model", "", TOKEN).config == CONFIG
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert read_model_config("some/model").config == CONFIG
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    assert read_model_config("some/model").config is None
    assert read_model_config("some/model", "", TOKEN).config == CONFIG
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_TOKEN_PATH", "/not/there")
    assert read_model_config("some/model").config == CONFIG


REFUSED = [
    (
        {"model.safetensors": None, "pytorch_model.bin": b""},
        "has weights as pytorch_model.bin only",
    ),
    ({"model.safetensors": None, "model-q4.gguf": b""}, "has weights as model-q4.gguf only"),
    ({"model.safetensors": None}, "has neither model.safetensors nor"),
    (
        {"model.safetensors": None, "consolidated.safetensors": b""},
        "has neither model.safetensors nor model.safetensors.index.json; consolidated.safetensors",
    ),
    ({"tokenizer.json": None, "tokenizer.model": b""}, "has no tokenizer.json"),
    ({"hf_quant_config.json": b"{}"}, "has quantized weights.*it has a hf_quant_config.json"),
    (
        {"model.safetensors.index.json": INDEX.encode(), "model-1.safetensors": b""},
        "is not whole: .* names 2 files, and there is no model-2.safetensors$",
    ),
    (
        {"model.safetensors.index.json": b'{"weight_map": {"a.qweight": "model.safetensors"}}'},
        "has quantized weights.*model.safetensors.index.json has a.qweight",
    ),
    ({"model.safetensors.index.json": b"{}"}, "without a weight_map"),
    ({"config.json": b"{"}, "has a config.json that is not JSON"),
]


def changed(changes):
    files = FILES | changes
    return {name: content for name, content in files.items() if content is not None}


@pytest.mark.parametrize(("changes", "told"), REFUSED)
def test_files_that_cannot_be_served(hub, tmp_path, changes, told):
    """On the hub and in a folder alike."""
    hub.repositories["some/model"].files = changed(changes)
    with pytest.raises(BadModel, match=told):
        read_model_config("some/model")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in changed(changes).items():
        (folder / name).write_bytes(content)
    if any(name.endswith((".safetensors", ".bin")) for name in changed(changes)):
        with pytest.raises(BadModel, match=told):
            read_model_config(str(folder))


def test_a_model_without_a_configuration(hub):
    del hub.repositories["some/model"].files["config.json"]
    with pytest.raises(BadModel, match=r"has no config\.json at main"):
        read_model_config("some/model")


def test_shards_are_listed_with_their_sizes(hub):
    del hub.repositories["some/model"].files["model.safetensors"]
    hub.repositories["some/model"].files |= {
        "model.safetensors.index.json": INDEX.encode(),
        "model-1.safetensors": b"1",
        "model-2.safetensors": b"22",
    }
    sizes = {"model-1.safetensors": 1, "model-2.safetensors": 2}
    assert read_model_config("some/model").weight_files == sizes


def test_a_folder_may_have_the_configuration_alone(tmp_path):
    """Its weights may be where the ranks are."""
    (tmp_path / "config.json").write_bytes(FILES["config.json"])
    found = read_model_config(str(tmp_path))
    assert (found.config, found.weight_files) == (CONFIG, {})


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid", "no url"]
)
def test_a_hub_that_is_not_there(monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    found = read_model_config("some/model")
    assert found.config is None
    assert found.reason.startswith(f"the hub cannot be reached at {endpoint} (")


def test_what_answers_and_is_no_hub(monkeypatch):
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>Please log in</html>")

        def log_message(self, *arguments: object) -> None:
            """Tests print nothing."""

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    found = read_model_config("some/model")
    server.shutdown()
    thread.join()
    server.server_close()
    assert found.config is None
    assert "does not answer as the hub does" in found.reason


def test_the_hub_cache_comes_first(empty_cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in read_model_config("some/model").reason
    model = empty_cache / "models--some--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("c0ffee")
    (model / "snapshots" / "c0ffee").mkdir(parents=True)
    (model / "snapshots" / "c0ffee" / "config.json").write_text('{"model_type": "phi3"}')
    assert read_model_config("some/model").config == {"model_type": "phi3"}
    (model / "snapshots" / "c0ffee" / "quantize_config.json").write_text("{}")
    with pytest.raises(BadModel, match=r"quantize_config\.json"):
        read_model_config("some/model")


def test_a_folder_comes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "model").mkdir(parents=True)
    (tmp_path / "some" / "model" / "config.json").write_text(json.dumps({"model_type": "opt"}))
    assert read_model_config("some/model").config == {"model_type": "opt"}


def test_the_demo_model_needs_no_network(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert read_model_config(DEMO_MODEL).config["num_hidden_layers"] == 30


@pytest.mark.parametrize("name", ["demo:unknown", "some..model", "a--b"])
def test_names_that_can_never_be(name):
    with pytest.raises(BadModel, match="is no "):
        read_model_config(name)


@pytest.mark.parametrize("name", ["~no-such-user/x", "/" + "x" * 300])
def test_paths_that_cannot_be(name):
    with pytest.raises(BadModel, match="is no usable path: "):
        read_model_config(name)


@pytest.mark.parametrize("name", ["/not/there", "./x", "~/none", "a/b/c", "a b"])
def test_folders_that_are_not_here(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = read_model_config(name)
    assert found.config is None
    assert found.reason == f"there is no folder {name} here"


def test_a_folder_of_deep_nesting_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(BadModel, match="not JSON"):
        read_model_config(str(tmp_path))
