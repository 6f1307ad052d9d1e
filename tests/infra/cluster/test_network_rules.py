"""What may reach what: asked of the rules as a cluster's network would ask them."""

from __future__ import annotations

from itertools import product

import pytest

from infra.cluster import labels
from infra.cluster.network_rules import Allowed, NetworkRule, network_rules
from infra.stack.config import DeploymentConfig
from tests.infra.deployments import parsed

INSTANCE = labels.INSTANCE
VALKEY = {"mode": "valkey", "image": "registry/valkey@sha256:" + "0" * 64}
PODS = {
    "rank 0": ("splits", labels.RANK_COMPONENT, 0),
    "rank 1": ("splits", labels.RANK_COMPONENT, 1),
    "proxy": ("blocks", labels.PROXY_BLOCK, None),
    "sessions": ("blocks", labels.SESSION_STORE, None),
    "server": ("inference-server", labels.INFERENCE_SERVER, None),
    "rollout": ("splits", labels.ROLLOUT, None),
    "prometheus": ("monitoring", "", None),
}
PORTS = (53, 443, 3000, 3001, 6379, 6443, 8080, 8081, 8082, 31504)
OUTSIDE = "outside"


def pod(deployment: DeploymentConfig, name: str) -> tuple[str, dict[str, str]]:
    namespace, component, rank = PODS[name]
    return namespace, labels.labels(deployment, component, rank) if component else {"app": "p"}


def applying(deployment: DeploymentConfig, namespace: str, own: dict[str, str]):
    return [
        rule
        for rule in network_rules(deployment)
        if rule.namespace == namespace and rule.selected.items() <= own.items()
    ]


def fits(allowed: Allowed, port: int, namespace: str, other: dict[str, str] | None) -> bool:
    if allowed.ports and port not in allowed.ports:
        return False
    return not allowed.peers or any(
        other is not None
        and peer.namespace == namespace
        and dict(peer.pod_labels).items() <= other.items()
        for peer in allowed.peers
    )


def one_way(rules: list[NetworkRule], key: str, port: int, namespace: str, other) -> bool:
    """A pod that no policy selects is open; one that is selected needs a rule that allows."""
    return not rules or any(
        fits(allowed, port, namespace, other) for rule in rules for allowed in getattr(rule, key)
    )


def connects(deployment: DeploymentConfig, source: str, target: str, port: int) -> bool:
    places = {
        name: pod(deployment, name) if name in PODS else ("", None) for name in (source, target)
    }
    (from_namespace, from_labels), (to_namespace, to_labels) = places[source], places[target]
    leaves = from_labels is None or one_way(
        applying(deployment, from_namespace, from_labels), "egress", port, to_namespace, to_labels
    )
    enters = to_labels is None or one_way(
        applying(deployment, to_namespace, to_labels), "ingress", port, from_namespace, from_labels
    )
    return leaves and enters


def reachable(deployment: DeploymentConfig) -> set[tuple[str, str, int]]:
    names = [*PODS, OUTSIDE]
    return {
        (source, target, port)
        for source, target, port in product(names, names, PORTS)
        if source != target
        and not {source, target} <= {"prometheus", OUTSIDE}
        and connects(deployment, source, target, port)
    }


CHAIN = {
    (OUTSIDE, "server", 31504),
    ("server", "proxy", 8082),
    ("proxy", "rank 0", 8080),
    ("rollout", "rank 0", 8080),
    ("rollout", "server", 31504),
    ("proxy", "sessions", 6379),
    ("rank 0", "rank 1", 3001),
    ("rank 1", "rank 0", 3001),
    ("rank 1", "rank 0", 3000),
    ("prometheus", "server", 31504),
    ("prometheus", "proxy", 8082),
    ("prometheus", "rank 0", 8080),
    ("prometheus", "rank 0", 8081),
    ("prometheus", "rank 1", 8081),
}
DNS = {
    (name, target, 53)
    for name, target in product(PODS, ["prometheus", OUTSIDE])
    if name not in (target, "prometheus")
}
HUB = {
    (name, target, 443) for name, target in product(["rank 0", "rank 1"], ["prometheus", OUTSIDE])
}
STATIC = {"discovery": "static"}
MODEL_IN_IMAGE = {"model_name": "demo:smollm2-135m-instruct"}


def test_the_chain_and_nothing_else_is_open():
    deployment = parsed(session_store=VALKEY, common_params=MODEL_IN_IMAGE, inference_server=STATIC)
    assert reachable(deployment) == CHAIN | DNS


def test_ranks_reach_the_hub_when_the_model_is_on_it():
    deployment = parsed(session_store=VALKEY, inference_server=STATIC)
    assert reachable(deployment) == CHAIN | DNS | HUB


@pytest.mark.parametrize(
    ("variable", "value", "port"),
    [
        ("HF_ENDPOINT", "http://mirror.example", 80),
        ("HF_ENDPOINT", "https://mirror.example:8443/hub", 8443),
        ("AWS_ENDPOINT_URL", "http://minio.storage:9000", 9000),
        ("https_proxy", "http://proxy.example:3128", 3128),
        ("HTTPS_PROXY", "no port at all:99999", 443),
        ("OTHER", "http://elsewhere:81", 443),
    ],
)
def test_a_mirror_or_a_web_proxy_is_reached_where_it_listens(variable, value, port):
    deployment = parsed(extra_env={variable: value})
    rule = next(rule for rule in network_rules(deployment) if rule.name == "ranks")
    open_ports = {item.ports for item in rule.egress if not item.peers}
    assert open_ports == {tuple(sorted({443, port}))}


@pytest.mark.parametrize(
    ("address", "port"),
    [
        ("https://models.example/mine", 443),
        ("https://models.example:8443/mine", 8443),
        ("http://minio.storage:9000/models/mine", 9000),
        ("s3://models/mine", 443),
    ],
)
def test_a_model_below_an_address_is_reached_there(address, port):
    deployment = parsed(common_params={"model_name": address})
    rule = next(rule for rule in network_rules(deployment) if rule.name == "ranks")
    assert {item.ports for item in rule.egress if not item.peers} == {(port,)}


def test_without_a_metrics_namespace_nobody_reads_metrics():
    deployment = parsed(
        network_policies={"metrics_namespace": ""}, session_store=VALKEY, inference_server=STATIC
    )
    expected = {item for item in CHAIN | DNS | HUB if item[0] != "prometheus"}
    # The inference server's port is the public one: whoever may ask it, may read its metrics.
    expected.add(("prometheus", "server", 31504))
    assert reachable(deployment) == expected


def test_a_store_elsewhere_is_reached_at_its_port():
    deployment = parsed(
        session_store={"mode": "url", "url": "redis://store.example:7000/1"},
        common_params=MODEL_IN_IMAGE,
    )
    assert connects(deployment, "proxy", OUTSIDE, 7000)
    assert not connects(deployment, "proxy", OUTSIDE, 6379)
    assert not connects(deployment, "rank 0", OUTSIDE, 7000)


def test_discovery_opens_the_api_server_and_the_blocks_of_other_stacks():
    static = parsed(common_params=MODEL_IN_IMAGE, inference_server=STATIC)
    found = parsed(common_params=MODEL_IN_IMAGE)
    assert not connects(static, "server", OUTSIDE, 6443)
    assert connects(found, "server", OUTSIDE, 443)
    assert connects(found, "server", OUTSIDE, 6443)
    other = {labels.NAME: labels.PROJECT, INSTANCE: "other", labels.COMPONENT: labels.PROXY_BLOCK}
    for deployment, opened in ((static, False), (found, True)):
        (rule,) = (item for item in network_rules(deployment) if item.name == "inference-server")
        assert one_way([rule], "egress", 9000, "blocks", other) is opened


def test_a_block_serves_the_inference_servers_of_other_stacks():
    alone = parsed(inference_server={"enabled": False})
    assert not [rule for rule in network_rules(alone) if rule.namespace == "inference-server"]
    server = {labels.NAME: labels.PROJECT, labels.COMPONENT: labels.INFERENCE_SERVER}
    for deployment in (parsed(), alone):
        rules = [rule for rule in network_rules(deployment) if rule.name == "proxy-block"]
        stranger = server | {INSTANCE: "other"}
        assert one_way(rules, "ingress", 8082, "inference-server", stranger)
        assert not one_way(rules, "ingress", 8082, "elsewhere", stranger)


def test_a_rollout_asks_the_outermost_tier_that_there_is():
    block = parsed(inference_server={"enabled": False})
    assert connects(block, "rollout", "proxy", 8082)
    assert not connects(parsed(), "rollout", "proxy", 8082)
    master = parsed(inference_server={"enabled": False}, proxy_blocks=[])
    assert connects(master, "rollout", "rank 0", 8080)


@pytest.mark.parametrize("expose", [{"mode": "none"}, {"mode": "none", "client_namespace": "app"}])
def test_of_a_closed_front_the_stack_s_own_rollout_alone_is_let_in_beside_clients(expose):
    deployment = parsed(inference_server={"expose": expose})
    callers = {name for name in PODS if connects(deployment, name, "server", 31504)}
    assert callers == {"rollout", "prometheus"}
    assert not connects(deployment, OUTSIDE, "server", 31504)
    rules = [rule for rule in network_rules(deployment) if rule.name == "inference-server"]
    another = labels.labels(parsed(deployment_name="other"), labels.ROLLOUT)
    assert not one_way(rules, "ingress", 31504, "splits", another)
    client = {"app": "any"}
    assert one_way(rules, "ingress", 31504, "app", client) is ("client_namespace" in expose)


def test_every_rule_is_about_our_own_instance_only():
    deployment = parsed(session_store=VALKEY)
    for rule in network_rules(deployment):
        assert rule.selected[INSTANCE] == "small"
    neighbour = labels.labels(parsed(deployment_name="other"), labels.RANK_COMPONENT, 0)
    assert applying(deployment, "splits", neighbour) == []
    (rule,) = (item for item in network_rules(deployment) if item.name == "ranks")
    assert not one_way([rule], "ingress", 3001, "splits", neighbour)


def test_ranks_on_two_clusters_meet_at_any_address():
    deployment = parsed(
        clusters={"one": {}, "two": {}},
        multi_cluster=True,
        routable_pod_addresses=True,
        per_rank_params=[{"rank": 0, "cluster_id": "one"}, {"rank": 1, "cluster_id": "two"}],
    )
    rules = list(network_rules(deployment))
    places = {(rule.name, rule.cluster) for rule in rules if rule.namespace == "splits"}
    assert places == {
        ("default", "one"), ("ranks", "one"), ("rank-master", "one"),
        ("rollout", "one"), ("default", "two"), ("ranks", "two"),
    }  # fmt: skip
    assert {rule.cluster for rule in rules if rule.namespace != "splits"} == {"one"}
    assert connects(deployment, OUTSIDE, "rank 1", 3001)
    assert connects(deployment, OUTSIDE, "rank 0", 3000)
    assert not connects(deployment, OUTSIDE, "rank 0", 8080)


def test_tiers_in_one_namespace_have_one_default():
    together = {"create": False, "blocks": "splits", "inference_server": "splits"}
    rules = list(network_rules(parsed(namespaces=together)))
    assert [rule.name for rule in rules].count("default") == 1
