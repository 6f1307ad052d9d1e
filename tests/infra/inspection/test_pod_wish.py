"""What pods ask of nodes, judged as the scheduler judges."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from kubernetes import client

from infra.inspection.pod_wish import PodWish, pod_wishes
from infra.stack.placement_config import NodeChoice
from tests.infra.deployments import parsed
from tests.infra.recorded_program import DIGEST


def node(labels: dict[str, str]) -> client.V1Node:
    ready = client.V1NodeCondition(type="Ready", status="True")
    return client.V1Node(
        metadata=client.V1ObjectMeta(name="n", labels=labels),
        spec=client.V1NodeSpec(),
        status=client.V1NodeStatus(conditions=[ready]),
    )


@pytest.mark.parametrize(
    ("expression", "labels", "holds"),
    [
        ({"values": ["a", "b"]}, {"k": "b"}, True),
        ({"values": ["a"]}, {"k": "b"}, False),
        ({"values": ["a"]}, {}, False),
        ({"operator": "NotIn", "values": ["a"]}, {}, True),
        ({"operator": "NotIn", "values": ["a"]}, {"k": "a"}, False),
        ({"operator": "Exists"}, {"k": ""}, True),
        ({"operator": "Exists"}, {}, False),
        ({"operator": "DoesNotExist"}, {}, True),
        ({"operator": "DoesNotExist"}, {"k": "a"}, False),
        ({"operator": "Gt", "values": [4]}, {"k": "5"}, True),
        ({"operator": "Gt", "values": [4]}, {"k": "4"}, False),
        ({"operator": "Lt", "values": [4]}, {"k": "-1"}, True),
        ({"operator": "Lt", "values": [4]}, {"k": "few"}, False),
        ({"operator": "Lt", "values": [4]}, {}, False),
        ({"values": ["a"], "weight": 5}, {}, True),
    ],
)
def test_conditions(expression: dict[str, Any], labels: dict[str, str], holds: bool) -> None:
    choice = NodeChoice.model_validate({"node_affinity": [{"key": "k"} | expression]})
    refusals = PodWish("rank 0", {}, choice=choice).refusals(node(labels))
    assert (refusals == []) is holds
    assert all(text.startswith("its label k is ") for text in refusals)


def test_labels() -> None:
    wish = PodWish("rank 0", {}, choice=NodeChoice(node_selector={"pool": "gpu"}))
    assert wish.refusals(node({"pool": "gpu"})) == []
    assert wish.refusals(node({"pool": "cpu"})) == ["its label pool is cpu, not gpu"]
    assert wish.refusals(node({})) == ["its label pool is not there, not gpu"]


def test_every_pod_once() -> None:
    deployment = parsed(
        per_rank_params=[{"rank": rank, "cpu": 2, "memory": "1Gi"} for rank in range(2)],
        master={"cpu": 1, "memory": "1Mi"},
        proxy_blocks=[{"block_id": "block", "min_instances": 2, "max_instances": 2}],
        session_store={"mode": "valkey", "image": f"registry.test/valkey@{DIGEST}"},
    )
    wishes = pod_wishes(deployment, deployment.cluster_of(0))
    assert [wish.name for wish in wishes] == [
        "rank 0", "rank 1", "block block", "block block", "inference server", "session store"
    ]  # fmt: skip
    assert wishes[0].amounts == {"cpu": Decimal(3), "memory": Decimal(2**30 + 2**20)}
    assert pod_wishes(deployment, "another") == []


def test_a_store_is_made_for_blocks_alone() -> None:
    deployment = parsed(
        proxy_blocks=[],
        inference_server={"enabled": False},
        session_store={"mode": "valkey", "image": f"registry.test/valkey@{DIGEST}"},
    )
    names = [wish.name for wish in pod_wishes(deployment, deployment.cluster_of(0))]
    assert "session store" not in names
