"""component.json: served, and what checks the requests."""

from __future__ import annotations

import dataclasses
from typing import Any

import httpx
import pytest

from contract.specs import ProxySpec
from proxy_block.component import COMPONENT, INPUT, component_document
from proxy_block.generation_config import parse_generation_config
from tests.web.tier_process import TierProcess
from web.errors import ApiError

CONFIG: dict[str, dict[str, Any]] = INPUT["generation_config"]["properties"]
BOUNDED = [
    (name, bound) for name, rules in CONFIG.items() for bound in ("min", "max") if bound in rules
]


def test_it_is_served_with_what_the_stack_says(proxy: TierProcess, spec: ProxySpec) -> None:
    served = httpx.get(f"{proxy.url}/component.json").json()
    assert served["blockId"] == "block-1"
    assert served["componentId"] == COMPONENT["componentId"]
    assert served["componentInputProtocol"] == INPUT
    assert served["componentInitData"] == {"model_split_id": spec.deployment_name}
    assert served["componentInitSettings"] == {"system_message": "the block's"}
    assert served["componentParameters"]["generation_config"] == spec.generation_config
    assert COMPONENT["componentInitSettings"] == {"system_message": ""}


def test_its_id_is_the_contracts_default(spec: ProxySpec) -> None:
    assert component_document(spec)["componentId"] == COMPONENT["componentId"]
    other = dataclasses.replace(spec, component="agent.other:2.1-beta")
    document = component_document(other)
    assert document["componentType"] == "agent"
    assert document["componentId"] == {"name": "other", "version": "2.1", "releaseTag": "beta"}


def test_the_bounds_are_those_of_the_protocol() -> None:
    bounds = {name: (CONFIG[name].get("min"), CONFIG[name].get("max")) for name in CONFIG}
    assert bounds["max_new_tokens"] == (1, 36000)
    assert bounds["top_k"] == (-1, 1000)
    assert bounds["top_p"] == (0, 1)
    assert bounds["temperature"] == (0, 2)
    assert CONFIG["do_sample"]["type"] == "boolean"


@pytest.mark.parametrize(("name", "bound"), BOUNDED)
def test_every_bound_in_the_file_is_enforced(name: str, bound: str) -> None:
    limit = CONFIG[name][bound]
    assert parse_generation_config({name: limit}) == {name: limit}
    beyond = limit + (1 if bound == "max" else -1)
    with pytest.raises(ApiError) as raised:
        parse_generation_config({name: beyond})
    error = raised.value.body["error"]
    assert (error["param"], error["value"]) == (name, repr(beyond))
    assert str(limit) in error["message"]


@pytest.mark.parametrize("name", CONFIG)
@pytest.mark.parametrize("value", ["1", {}, [1], float("nan"), float("inf")])
def test_every_type_in_the_file_is_enforced(name: str, value: Any) -> None:
    with pytest.raises(ApiError) as raised:
        parse_generation_config({name: value})
    assert raised.value.body["error"]["param"].startswith(name)


def test_a_whole_number_is_one_however_it_is_written() -> None:
    found = parse_generation_config({"max_new_tokens": 10.0, "temperature": 1})
    assert repr(found) == "{'max_new_tokens': 10, 'temperature': 1.0}"
    with pytest.raises(ApiError, match=r"top_k = 1\.5: must be a whole number"):
        parse_generation_config({"top_k": 1.5})
