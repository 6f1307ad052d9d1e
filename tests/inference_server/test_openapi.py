"""The public API does what its OpenAPI document says, whatever is sent to it.

The upstream is a small one: what an engine refuses is the engine's to be tested with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.specs import BlockSpec
from tests.inference_server.conftest import Tiers
from tests.lanes import examples
from tests.web.fuzzing import fuzz
from tests.web.tier_process import TierProcess

BLOCK = "block-1"
# A few hundred cases at each run.
EXAMPLES = examples(15)


@pytest.fixture(scope="module")
def proxy(tiers: Tiers) -> TierProcess:
    return tiers.proxy(BLOCK)


@pytest.fixture(scope="module")
def server(tiers: Tiers, proxy: TierProcess) -> TierProcess:
    log = str(tiers.folder / "requests.sqlite3")
    return tiers.server(BlockSpec(BLOCK, proxy.url), request_log_path=log)


@pytest.fixture
def document(server: TierProcess) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()
    return found


def test_every_route_is_described(document: dict[str, Any], server: TierProcess) -> None:
    for path, operations in document["paths"].items():
        assert httpx.options(server.url + path).status_code == 405, path
        for operation in operations.values():
            assert "200" in operation["responses"]


@pytest.mark.slow
def test_the_document_as_it_is(
    server: TierProcess, document: dict[str, Any], tmp_path: Path
) -> None:
    # A schema cannot say which graphs and queries make sense for the blocks there are.
    fuzz(server.url, document, tmp_path, EXAMPLES, exclude="positive_data_acceptance")
    assert httpx.get(f"{server.url}/livez").status_code == 200
    assert "trace" not in server.errors()


@pytest.mark.slow
def test_requests_that_reach_the_block(
    server: TierProcess, proxy: TierProcess, document: dict[str, Any], tmp_path: Path
) -> None:
    """The block's name and a question, which the server's document cannot know; the block takes
    more than this one question."""
    infer = document["paths"]["/v1/infer"]["post"]
    schema = infer["requestBody"]["content"]["application/json"]["schema"]
    schema["required"].append("model")
    fields = schema["properties"]
    fields["data"] = {"const": {"message": "x"}}
    fields["model"] = {"const": BLOCK}
    fields["graph"] = fields["selection_query"] = {"enum": [None, {}]}
    del infer["parameters"]  # a deadline that is too short is a 504, as it should be
    document["paths"] = {"/v1/infer": {"post": infer}}
    fuzz(server.url, document, tmp_path, EXAMPLES, exclude="negative_data_rejection")
    for tier in (server, proxy):
        assert "trace" not in tier.errors()


def test_the_document_is_json_that_names_no_secret(document: dict[str, Any]) -> None:
    assert "sha256" not in json.dumps(document)
