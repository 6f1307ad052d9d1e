"""config.json out of a folder, the hub cache, or a hub on loopback."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest

from contract.models import DEMO_MODEL
from infra.plan.model_config import BadModel, read_model_config

PUBLIC = [
    "/some/model/resolve/main/config.json",
    "/some/model/resolve/q/config.json",
    "/some/model/resolve/q/hf_quant_config.json",
]


class Hub(BaseHTTPRequestHandler):
    """Has one model, some/model: at revision v2 its files need the token, at q it is quantized."""

    def do_GET(self) -> None:
        private = self.headers.get("Authorization") == "Bearer secret"
        found = self.path in PUBLIC or (
            self.path == "/some/model/resolve/v2/config.json" and private
        )
        body = b'{"model_type": "llama"}' if found else b"not found"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815, the name that the server asks for

    def log_message(self, *arguments: object) -> None:
        """Tests print nothing."""


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}/")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_hub_is_asked(hub, monkeypatch):
    assert read_model_config("some/model").config == {"model_type": "llama"}
    assert read_model_config("some/model", "v2").config is None
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert read_model_config("some/model", "v2").config == {"model_type": "llama"}


def test_a_quantized_model_on_the_hub_is_refused(hub):
    with pytest.raises(BadModel, match=r"quantized weights.*hf_quant_config\.json"):
        read_model_config("some/model", "q")


def test_what_the_hub_does_not_have(hub):
    found = read_model_config("other/model")
    assert found.config is None
    assert found.reason.endswith("/other/model/resolve/main/config.json answers 404")


def test_a_hub_that_is_not_there(hub, monkeypatch):
    hub.socket.close()
    found = read_model_config("some/model")
    assert found.config is None
    assert "cannot be reached" in found.reason


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
