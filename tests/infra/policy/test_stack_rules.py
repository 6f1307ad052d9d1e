from __future__ import annotations

import pytest

from infra.policy.resources import Resource
from infra.policy.stack_rules import double_booked_device, missing_instance
from tests.infra.policy.objects import GOOD_POD, on_nodes, pod

INSTANCE = {"app.kubernetes.io/instance": "small"}
COMPONENT = {"app.kubernetes.io/component": "rank"}


def rank(number: int, devices: str, ordinal: str = "", node: str = "n1", provider: str = "one"):
    variables = {"NVIDIA_VISIBLE_DEVICES": devices, "CUDA_VISIBLE_DEVICES": ordinal}
    container = GOOD_POD["spec"]["containers"][0] | {
        "env": [{"name": name, "value": value} for name, value in variables.items()]
    }
    made = pod(f"rank-{number}", containers=[container], affinity=on_nodes(node))
    return Resource(made.kind, made.name, made.properties, provider, made.urn)


def claim(name: str, uuid: str, provider: str = "one") -> Resource:
    expression = f'device.attributes["gpu.nvidia.com"].uuid == "{uuid}"'
    request = {"name": "gpu", "exactly": {"selectors": [{"cel": {"expression": expression}}]}}
    properties = {"metadata": {"name": name}, "spec": {"devices": {"requests": [request]}}}
    return Resource(
        "kubernetes:resource.k8s.io/v1:ResourceClaim", name, properties, provider, f"urn:{name}"
    )


def claiming(name: str, of: str) -> Resource:
    return pod(
        name,
        containers=[{"name": "stage"}],
        resourceClaims=[{"name": "gpu", "resourceClaimName": of}],
    )


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        (
            [rank(0, "0"), rank(1, "0")],
            "Pod rank-1 would hold device 0 of node n1, which Pod rank-0 holds",
        ),
        (
            [rank(0, "1"), rank(1, "0,1", "1")],
            "Pod rank-1 would hold device 1 of node n1, which Pod rank-0 holds",
        ),
        (
            # Without CUDA_VISIBLE_DEVICES a container holds all that it sees.
            [rank(0, "0,1"), rank(1, "1")],
            "Pod rank-1 would hold device 1 of node n1, which Pod rank-0 holds",
        ),
        (
            [claim("a", "GPU-12"), claim("b", "GPU-12")],
            "ResourceClaim b would hold device GPU-12, which ResourceClaim a holds",
        ),
        (
            [claiming("rank-0", "a"), claiming("rank-1", "a")],
            "Pod rank-1 would hold ResourceClaim splits/a, which Pod rank-0 holds",
        ),
    ],
)
def test_a_device_with_two_holders_is_refused(resources, expected):
    (found,) = double_booked_device(resources)
    assert found == (resources[1].urn, expected)


def test_pods_of_one_name_in_two_namespaces_are_two_holders():
    first, second = rank(0, "0"), rank(0, "0")
    second.properties["metadata"]["namespace"] = "other"
    assert len(list(double_booked_device([first, second]))) == 1


@pytest.mark.parametrize(
    "resources",
    [
        [rank(0, "0"), rank(1, "1")],
        [rank(0, "0,1", "0"), rank(1, "0,1", "1")],
        [rank(0, "0"), rank(1, "0", node="n2")],
        [rank(0, "0"), rank(1, "0", provider="two")],
        [rank(0, ""), rank(1, "")],
        [rank(0, "void"), rank(1, "void")],
        [claim("a", "GPU-12"), claim("b", "GPU-13")],
        [claim("a", "GPU-12"), claiming("rank-0", "a")],
        [],
    ],
)
def test_devices_with_one_holder_each_are_let_through(resources):
    assert list(double_booked_device(resources)) == []


def selecting(kind: str, group: str, spec: dict) -> Resource:
    properties = {"metadata": {"name": "x"}, "spec": spec}
    return Resource(f"kubernetes:{group}:{kind}", "x", properties)


SELECTORS = [
    ("Service", "core/v1", "spec.selector", lambda labels: {"selector": labels}),
    *(
        (
            kind,
            group,
            "spec.selector.matchLabels",
            lambda labels: {"selector": {"matchLabels": labels}},
        )
        for kind, group in (
            ("Deployment", "apps/v1"),
            ("StatefulSet", "apps/v1"),
            ("PodDisruptionBudget", "policy/v1"),
        )
    ),
    (
        "NetworkPolicy",
        "networking.k8s.io/v1",
        "spec.podSelector.matchLabels",
        lambda labels: {"podSelector": {"matchLabels": labels}},
    ),
]


@pytest.mark.parametrize(("kind", "group", "path", "spec"), SELECTORS)
def test_a_selector_without_the_instance_is_refused(kind, group, path, spec):
    (violation,) = missing_instance(selecting(kind, group, spec(COMPONENT)))
    assert violation == f"{kind} x: {path} must include app.kubernetes.io/instance"
    assert list(missing_instance(selecting(kind, group, spec(COMPONENT | INSTANCE)))) == []


def test_a_policy_about_every_pod_of_a_namespace_is_refused():
    assert list(
        missing_instance(selecting("NetworkPolicy", "networking.k8s.io/v1", {"podSelector": {}}))
    )


def test_a_service_without_a_selector_picks_nobody():
    assert list(missing_instance(selecting("Service", "core/v1", {}))) == []
