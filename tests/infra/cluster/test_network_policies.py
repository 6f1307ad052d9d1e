"""The rules as objects: test_network_rules asks what they allow."""

from __future__ import annotations

from typing import Any

from infra.cluster.network_rules import network_rules
from infra.stack.file import parse_deployment
from tests.infra.program_stacks import stack, two_clusters
from tests.infra.recorded_program import run_program

INSTANCE = "app.kubernetes.io/instance"


def policies(mapping: dict[str, Any]) -> list[dict[str, Any]]:
    return [item.manifest for item in run_program(mapping).of_kind("NetworkPolicy")]


def test_each_rule_is_one_policy(tmp_path):
    mapping = stack(tmp_path)
    rules = list(network_rules(parse_deployment(mapping)))
    made = {(item["metadata"]["namespace"], item["metadata"]["name"]) for item in policies(mapping)}
    assert made == {(rule.namespace, f"small-{rule.name}") for rule in rules}
    assert len(made) == len(rules)


def test_each_policy_is_about_our_pods_and_names_both_directions(tmp_path):
    for policy in policies(stack(tmp_path)):
        assert policy["spec"]["podSelector"]["matchLabels"][INSTANCE] == "small"
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_the_default_lets_nothing_in_and_only_names_out(tmp_path):
    defaults = [
        item["spec"]
        for item in policies(stack(tmp_path))
        if item["metadata"]["name"] == "small-default"
    ]
    assert len(defaults) == 3
    for spec in defaults:
        assert spec["podSelector"] == {"matchLabels": {INSTANCE: "small"}}
        assert spec.get("ingress", []) == []
        (rule,) = spec["egress"]
        assert rule == {
            "ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
        }


def test_peers_are_pods_of_a_namespace(tmp_path):
    found = {item["metadata"]["name"]: item["spec"] for item in policies(stack(tmp_path))}
    server, metrics = found["small-proxy-block"]["ingress"]
    assert server == {
        "ports": [{"port": 8082, "protocol": "TCP"}],
        "from": [
            {
                "namespaceSelector": {
                    "matchLabels": {"kubernetes.io/metadata.name": "inference-server"}
                },
                "podSelector": {
                    "matchLabels": {
                        "app.kubernetes.io/name": "splitstack",
                        "app.kubernetes.io/component": "inference-server",
                    }
                },
            }
        ],
    }
    monitoring = {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    assert metrics["from"] == [{"namespaceSelector": monitoring}]
    # Without peers: anybody.
    (public,) = found["small-inference-server"]["ingress"]
    assert public == {"ports": [{"port": 31504, "protocol": "TCP"}]}


def test_the_policies_of_a_cluster_are_made_there(tmp_path):
    found = run_program(two_clusters(tmp_path)).of_kind("NetworkPolicy")
    places = {(item.cluster, item.manifest["metadata"]["name"]) for item in found}
    assert ("away", "small-ranks") in places
    assert ("home", "small-ranks") in places
    assert {name for cluster, name in places if cluster == "away"} == {
        "small-default",
        "small-ranks",
    }


def test_a_stack_may_do_without(tmp_path):
    assert policies(stack(tmp_path, network_policies={"enabled": False})) == []
