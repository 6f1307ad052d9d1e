"""Where pods may run: what contradicts itself or means nothing."""

from __future__ import annotations

import pytest

from tests.infra.deployments import fault_lines, parsed

ZONE = "topology.kubernetes.io/zone"


def affinity(**expression: object) -> dict[str, object]:
    return {"node_affinity": [{"key": ZONE} | expression]}


@pytest.mark.parametrize(
    ("expression", "rule"),
    [
        ({"operator": "In"}, "must list a value with operator In"),
        ({"operator": "NotIn", "values": []}, "must list a value with operator NotIn"),
        ({"operator": "Exists", "values": ["a"]}, "must be empty with operator Exists"),
        ({"operator": "DoesNotExist", "values": ["a"]}, "must be empty with operator"),
        ({"operator": "Gt", "values": ["a"]}, "must be one whole number with operator Gt"),
        ({"operator": "Lt", "values": ["1", "2"]}, "must be one whole number with operator Lt"),
        ({"values": ["a"], "weight": 0}, "must be at least 1"),
        ({"values": ["a b"]}, "must be a label's value"),
        ({"key": "", "values": ["a"]}, "must be a label's key"),
    ],
)
def test_conditions_that_mean_nothing(expression: dict[str, object], rule: str) -> None:
    (line,) = fault_lines(placement=affinity(**expression))
    assert line.startswith("placement.node_affinity[0].")
    assert rule in line


@pytest.mark.parametrize(
    "expression",
    [
        {"operator": "Exists"},
        {"operator": "Gt", "values": [1]},
        {"values": ["a", "b"]},
        {"operator": "NotIn", "values": ["a"], "weight": 100},
    ],
)
def test_conditions_that_hold_of_some_node(expression: dict[str, object]) -> None:
    assert parsed(placement=affinity(**expression)).placement.node_affinity


def test_a_rank_comes_on_top_of_all() -> None:
    own = {"node_selector": {"disk": "nvme"}, **affinity(operator="Exists")}
    common = {"node_selector": {"pool": "gpu"}, **affinity(values=["a"])}
    deployment = parsed(placement=common, per_rank_params=[{"rank": 1, "placement": own}])
    assert deployment.node_choice(0) == deployment.node_choice(0).model_validate(common)
    chosen = deployment.node_choice(1)
    assert chosen.node_selector == {"pool": "gpu", "disk": "nvme"}
    assert [item.operator for item in chosen.node_affinity] == ["In", "Exists"]


def test_two_labels_for_one_key() -> None:
    own = {"rank": 1, "placement": {"node_selector": {"pool": "cpu"}}}
    (line,) = fault_lines(placement={"node_selector": {"pool": "gpu"}}, per_rank_params=[own])
    assert line.startswith("per_rank_params[0].placement.node_selector.pool = 'cpu'")
    assert "must be gpu, as in placement.node_selector" in line


def test_a_node_that_is_named_twice() -> None:
    host = {"node_selector": {"kubernetes.io/hostname": "n2"}}
    (line,) = fault_lines(per_rank_params=[{"rank": 0, "node_id": "n1", "placement": host}])
    assert line.startswith("per_rank_params[0].node_id")
    assert "keep one of them" in line


@pytest.mark.parametrize("tier", ["inference_server", "session_store", "proxy_blocks"])
def test_tolerations_of_every_tier(tier: str) -> None:
    wrong = {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}, {}]}
    value = [{"block_id": "block"} | wrong] if tier == "proxy_blocks" else wrong
    path = "proxy_blocks[0]" if tier == "proxy_blocks" else tier
    assert [line.partition(" ")[0] for line in fault_lines(**{tier: value})] == [
        f"{path}.tolerations[0].value",
        f"{path}.tolerations[1].key",
    ]
