"""A model in a bucket: a store on loopback that has its buckets as folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.plan.model_config import read_model_config
from tests.hub_server import HubServer, Repository, serving
from tests.runner.models.fetching import resolved
from tests.runner.models.test_web_folder import FILES, WANTED, contents

# As the hub's server has the files of a repository.
ADDRESS = "s3://models/small/resolve/main"
KEYS = {"AWS_ACCESS_KEY_ID": "some-key", "AWS_SECRET_ACCESS_KEY": "some-secret"}


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    with serving(HubServer({"models/small": Repository(dict(FILES))})) as url:
        yield KEYS | {"AWS_ENDPOINT_URL": url}


def test_a_folder_of_a_bucket_is_fetched(environment: dict[str, str], tmp_path: Path) -> None:
    found = resolved("", tmp_path, ADDRESS, "", "all", **environment)
    assert contents(found["path"]) == WANTED
    nobody = KEYS | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    again = resolved("", tmp_path, f"{ADDRESS}/", found["commit"], "all", **nobody)
    assert again["path"] == found["path"]


def test_a_fetch_goes_on_where_it_stopped(environment: dict[str, str], tmp_path: Path) -> None:
    found = resolved("", tmp_path, ADDRESS, "", "all", **environment)
    name = next(name for name in WANTED if name.endswith(".safetensors"))
    whole = Path(found["path"]) / name
    whole.unlink()
    # What has come stays as it is: no byte is asked for twice.
    begun = bytes(1000)
    whole.with_name(f"{name}.partial").write_bytes(begun)
    resolved("", tmp_path, ADDRESS, "", "all", **environment)
    assert whole.read_bytes() == begun + WANTED[name][1000:]


def test_the_plan_finds_what_the_ranks_find(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    planned = read_model_config(ADDRESS)
    assert planned.config == {"model_type": "llama"}
    assert resolved("", tmp_path, ADDRESS, "", "", **environment)["commit"] == planned.commit


def test_what_cannot_be_had_is_told_without_the_signature(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "s3://models/none/resolve/main"  # which this server answers with 401
    told = resolved("", tmp_path, address, "", "all", **environment)["error"]
    assert told == f"model_name = '{address}': /models/none/resolve/main/config.json answers 401"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert read_model_config(address).reason.endswith("/none/resolve/main/config.json answers 401")
    del environment["AWS_SECRET_ACCESS_KEY"]
    told = resolved("", tmp_path, ADDRESS, "", "all", **environment)["error"]
    assert told.endswith("needs AWS_SECRET_ACCESS_KEY beside AWS_ACCESS_KEY_ID")
