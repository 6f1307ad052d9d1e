"""Both forms of selection_query, what they match, and what is said of those that do not."""

from __future__ import annotations

import time
from typing import Any

import pytest

from contract.specs import BlockSpec
from inference_server.infer.query import AIOS_PATH, Variables, parse_selection_query
from web.errors import ApiError

BLOCK = Variables(
    BlockSpec(
        "chat-1", "", "model.pytorch-runner:1.0.0-stable", {"tier.one": "gold", "lang": "en"}
    ),
    {
        "componentType": "model",
        "componentMetadata": {"framework": "PyTorch", "layers": 30, "quantized": False},
        "tags": ["proxy", "model-splitting"],
    },
)


def aios(query: Any, **beside: Any) -> dict[str, Any]:
    value: Any = {"blockQuery": query, **beside}
    for name in reversed(AIOS_PATH):
        value = {name: value}
    value["header"] = {"templateUri": "Parser/V1", "parameters": {}}
    value["body"]["values"]["matchType"] = "block"
    return value


def condition(variable: str, operator: str, value: Any) -> dict[str, Any]:
    return {"variable": variable, "operator": operator, "value": value}


def failure(value: dict[str, Any]) -> str:
    tree = parse_selection_query(value)
    assert tree is not None
    return tree.failure(BLOCK)


@pytest.mark.parametrize(
    ("variable", "operator", "value"),
    [
        ("id", "==", "chat-1"),
        ("blockId", "IN", ["chat-1", "chat-2"]),
        ("component", "==", "model.pytorch-runner:1.0.0-stable"),
        ("component", "LIKE", "pytorch"),
        ("component", "LIKE", "model.%:1.0.%"),
        ("component.componentMetadata.framework", "==", "PyTorch"),
        ("component.metadata.framework", "LIKE", "torch"),
        ("component.metadata.layers", ">=", 30),
        ("component.metadata.layers", "<", 30.5),
        ("component.metadata.quantized", "==", False),
        ("component.metadata.quantized", "!=", 0),
        ("component.tags", "==", "proxy"),
        ("tags", "==", ["proxy", "model-splitting"]),
        ("tags", "IN", ["other", "proxy"]),
        ("tags", "NOT IN", ["other"]),
        ("labels.tier.one", "==", "gold"),
        ("labels.nothing", "!=", "gold"),
    ],
)
def test_conditions_that_hold(variable: str, operator: str, value: Any) -> None:
    assert failure(aios(condition(variable, operator, value))) == ""


@pytest.mark.parametrize(
    ("variable", "operator", "value", "said"),
    [
        ("id", "==", "chat-2", "id == 'chat-2' is false: the block has 'chat-1'"),
        ("tags", "==", "multi-modal", "the block has ['proxy', 'model-splitting']"),
        ("component.metadata.nothing", "==", None, "the block has none"),
        ("component.metadata.layers", "<", "31", "the block has 30"),
        ("component.metadata.quantized", "==", 0, "the block has False"),
        ("labels.lang", "LIKE", "de%", "the block has 'en'"),
        ("component.componentMetadata.framework", "LIKE", "*", "the block has 'PyTorch'"),
    ],
)
def test_conditions_that_do_not(variable: str, operator: str, value: Any, said: str) -> None:
    assert said in failure(aios(condition(variable, operator, value)))


def test_all_and_any() -> None:
    right, wrong = condition("id", "==", "chat-1"), condition("id", "==", "other")
    for operator, conditions, holds in [
        ("AND", [right, right], True),
        ("AND", [right, wrong], False),
        ("OR", [wrong, right], True),
        ("OR", [wrong, wrong], False),
    ]:
        query = aios({"logicalOperator": operator, "conditions": conditions})
        assert (failure(query) == "") is holds
    nested = {"logicalOperator": "OR", "conditions": [wrong, {"conditions": [right]}]}
    assert failure(aios(nested)) == ""


def test_the_short_form() -> None:
    assert failure({"tags": ["proxy"], "labels": {"lang": "en"}}) == ""
    assert failure({"component": "model.pytorch-runner:1.0.0-stable"}) == ""
    assert "labels.lang == 'de'" in failure({"tags": ["proxy"], "labels": {"lang": "de"}})


def test_an_empty_block_query_matches_every_block() -> None:
    assert failure(aios({})) == ""
    assert parse_selection_query({}) is None


@pytest.mark.parametrize(
    ("value", "param", "code"),
    [
        (aios({}, blockMetricsQuery={}), "filter.blockMetricsQuery", "not_supported"),
        (aios({}, clusterQuery={}), "filter.clusterQuery", "not_supported"),
        ({"header": {}}, "selection_query.body", "invalid_value"),
        ({"body": {"values": 1}}, "selection_query.body.values", "invalid_value"),
        (aios([1]), "blockQuery", "invalid_value"),
        (aios(condition("id", "~", 1)), "blockQuery.operator", "invalid_value"),
        (aios({"variable": "id", "operator": "=="}), "blockQuery.value", "invalid_value"),
        (aios(condition("id", "IN", "x")), "blockQuery.value", "invalid_value"),
        (aios(condition("id", "LIKE", 1)), "blockQuery.value", "invalid_value"),
        (aios({"logicalOperator": "XOR", "conditions": [condition("id", "==", 1)]}),
         "blockQuery.logicalOperator", "invalid_value"),
        (aios({"conditions": []}), "blockQuery.conditions", "invalid_value"),
        (aios({"conditions": [condition("id", "==", 1), 3]}), "conditions[1]", "invalid_value"),
        ({"tags": "x"}, "selection_query.tags", "invalid_value"),
        ({"labels": {"a": 1}}, "selection_query.labels.a", "invalid_value"),
        ({"tag": []}, "selection_query.tag", "invalid_value"),
    ],
)  # fmt: skip
def test_bad_queries_are_named(value: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_selection_query(value)
    error = refused.value.body["error"]
    assert refused.value.status == 400
    assert error["param"].endswith(param)
    assert error["code"] == code
    assert error["param"] in error["message"]


def test_depth_is_bounded() -> None:
    query: dict[str, Any] = condition("id", "==", 1)
    for _ in range(500):
        query = {"conditions": [query]}
    with pytest.raises(ApiError, match="nested at most"):
        parse_selection_query(aios(query))


def test_labels_by_the_hundred_thousand_are_one_fault() -> None:
    labels = {str(number): number for number in range(200_000)}
    began = time.process_time()
    with pytest.raises(ApiError) as refused:
        parse_selection_query({"labels": labels})
    # Each of them worded would take seconds.
    assert time.process_time() - began < 1.0
    error = refused.value.body["error"]
    assert (error["param"], refused.value.status) == ("selection_query.labels", 400)
    assert len(error["message"]) < 300
