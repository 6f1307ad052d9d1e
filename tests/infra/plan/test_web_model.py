"""The plan of a model below an address; what stands for its content is what the ranks find."""

import json

import pytest

from infra.plan.model_config import read_model_config
from infra.plan.model_files import BadModel
from runner.models.folder import resolve_model
from tests.hub_server import HubServer, Repository, serving

CONFIG = {"model_type": "llama"}
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": b"{}",
    "model.safetensors": b"1234567",
}


@pytest.fixture
def server():
    return HubServer({"a/folder": Repository(dict(FILES))})


@pytest.fixture
def address(server):
    with serving(server) as url:
        yield f"{url}/a/folder/resolve/main"


def test_plan_and_ranks_find_the_same(address, tmp_path):
    found = read_model_config(address)
    assert (found.config, found.weight_files) == (CONFIG, {"model.safetensors": 7})
    ranks = resolve_model(address, cache=str(tmp_path), weights=True)
    assert ranks.commit == found.commit
    assert read_model_config(address, found.commit) == found


def test_another_content_than_model_revision_says(address):
    with pytest.raises(BadModel, match="now, and model_revision says 'c0ffee'"):
        read_model_config(address, "c0ffee")


def test_what_cannot_be_served_is_refused(server, address):
    files = server.repositories["a/folder"].files
    del files["tokenizer.json"]
    with pytest.raises(BadModel, match=r"has no tokenizer\.json"):
        read_model_config(address)
    files["quant_config.json"] = b"{}"
    with pytest.raises(BadModel, match=r"it has a quant_config\.json"):
        read_model_config(address)
    del files["config.json"]
    with pytest.raises(BadModel, match=r"has no config\.json"):
        read_model_config(address)


def test_who_does_not_tell_is_named(server, address):
    server.repositories["a/folder"].access = "forbidden"
    assert read_model_config(address).reason == f"{address}/config.json answers 403"
    found = read_model_config("http://127.0.0.1:9/model")
    assert found.reason.startswith("it cannot be reached (")
