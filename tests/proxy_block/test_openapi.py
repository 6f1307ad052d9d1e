"""The block's API does what its OpenAPI document says, whatever is sent to it.

The upstream is a small one: what an engine refuses is the engine's to be tested with.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from contract.specs import ProxySpec, SessionsSpec
from tests.lanes import examples
from tests.web.fuzzing import fuzz
from tests.web.small_upstream import SmallUpstream
from tests.web.tier_process import TierProcess

# A few hundred cases at each run.
EXAMPLES = examples(15)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TierProcess]:
    folder = tmp_path_factory.mktemp("proxy")
    sessions = SessionsSpec(str(folder / "sessions.sqlite3"))
    with SmallUpstream() as upstream:
        spec = ProxySpec("block-1", "demo-1", upstream.url, sessions=sessions)
        with TierProcess("proxy_block", spec, folder) as process:
            yield process


@pytest.fixture
def document(proxy: TierProcess) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{proxy.url}/openapi.json").json()
    return found


def test_every_route_is_described(document: dict[str, Any], proxy: TierProcess) -> None:
    for path, operations in document["paths"].items():
        assert httpx.options(proxy.url + path).status_code == 405, path
        for operation in operations.values():
            assert "200" in operation["responses"]


@pytest.mark.parametrize(
    ("data", "valid"),
    [
        ("text", True),
        ({"message": {"reply": "x", "usage": None}, "mode": "chat"}, True),
        ({"inputs": ["a", {"generated": "b"}, ["c"]]}, True),
        ([[["too deep"]]], False),
        ({"prompt": "x", "mode": "generate"}, True),
        ({"inputs": ["a"], "generation_config": {"top_k": 5}}, True),
        ({"inputs": ["a"], "mode": "chat"}, False),
        ({"message": "x", "generation_config": {"top_k": -2}}, False),
        ({"message": "x", "reply": "y"}, False),
        ([], False),
    ],
)
def test_the_schema_of_data(document: dict[str, Any], data: object, valid: bool) -> None:
    schema = {"$ref": "#/components/schemas/Input", "components": document["components"]}
    assert jsonschema.Draft202012Validator(schema).is_valid(data) == valid


@pytest.mark.slow
def test_the_block_protocol(proxy: TierProcess, document: dict[str, Any], tmp_path: Path) -> None:
    document["paths"] = {
        path: operations
        for path, operations in document["paths"].items()
        if not path.startswith("/v1/")
    }
    # Among thousands of batches of batches some hold more than 64 questions in all, which are
    # refused and which a schema cannot count.
    exclude = "positive_data_acceptance" if EXAMPLES > 100 else ""
    fuzz(proxy.url, document, tmp_path, EXAMPLES, exclude)
    assert httpx.get(f"{proxy.url}/livez").status_code == 200
    assert "trace" not in proxy.errors()
