from __future__ import annotations

import pytest

from infra.policy import pod_rules
from infra.policy.resources import Resource
from tests.infra.policy.objects import (
    DIGEST,
    on_nodes,
    pod,
    templated,
    with_container,
    with_environment,
)

RULES = [
    pod_rules.mutable_image,
    pod_rules.missing_limits,
    pod_rules.mounted_token,
    pod_rules.plain_text_secret,
    pod_rules.misplaced_rank,
]


@pytest.mark.parametrize("rule", RULES)
def test_a_good_pod_is_let_through(rule):
    assert list(rule(pod())) == []
    assert list(rule(templated("Deployment", "apps/v1", pod()))) == []


@pytest.mark.parametrize("rule", RULES)
def test_what_is_no_kubernetes_object_is_none_of_its_business(rule):
    image = Resource("docker:index/image:Image", "runner", {"spec": pod().properties["spec"]})
    assert list(rule(image)) == []


@pytest.mark.parametrize(
    ("rule", "bad", "expected"),
    [
        (
            pod_rules.mutable_image,
            with_container(image="registry/runner:latest"),
            "Pod small-rank-0, container stage: image 'registry/runner:latest' is not pinned",
        ),
        (pod_rules.mutable_image, with_container(image=None), "image '' is not pinned"),
        (pod_rules.mutable_image, with_container(image=f"{DIGEST}0"), "is not pinned"),
        (
            pod_rules.mutable_image,
            pod(initContainers=[{"name": "first", "image": "busybox"}]),
            "container first: image 'busybox' is not pinned",
        ),
        (
            pod_rules.missing_limits,
            with_container(resources={"requests": {"cpu": "1", "memory": "1Gi"}}),
            "resources lack limits.cpu, limits.memory",
        ),
        (
            pod_rules.missing_limits,
            with_container(resources=None),
            "resources lack requests.cpu, requests.memory, limits.cpu, limits.memory",
        ),
        (
            pod_rules.mounted_token,
            pod(automountServiceAccountToken=None),
            "Pod small-rank-0: automountServiceAccountToken must be false",
        ),
        (
            pod_rules.mounted_token,
            pod(automountServiceAccountToken=True, serviceAccountName="default"),
            "automountServiceAccountToken must be false",
        ),
        (
            pod_rules.plain_text_secret,
            with_environment(HF_TOKEN="hf_something"),
            "variable HF_TOKEN holds a secret in plain text",
        ),
        (
            pod_rules.plain_text_secret,
            with_environment(redis_password="x"),
            "variable redis_password holds a secret",
        ),
        (
            pod_rules.plain_text_secret,
            with_environment(STORE="redis://:hunter2@store:6379/0"),
            "variable STORE holds a secret",
        ),
        (
            pod_rules.misplaced_rank,
            pod(affinity=None),
            "NVIDIA_VISIBLE_DEVICES=0,1 without one node in required node affinity",
        ),
        (
            pod_rules.misplaced_rank,
            pod(affinity=on_nodes("n1", "n2")),
            "without one node in required node affinity",
        ),
        (
            pod_rules.misplaced_rank,
            pod(nodeName="n1"),
            "nodeName goes past the scheduler",
        ),
    ],
)
def test_a_bad_pod_is_refused(rule, bad, expected):
    (violation,) = rule(bad)
    assert expected in violation
    (violation,) = rule(templated("StatefulSet", "apps/v1", bad))
    assert violation.startswith("StatefulSet workload")


def test_a_violation_never_shows_the_secret():
    bad = with_environment(HF_TOKEN="hf_something", STORE="redis://:hunter2@store/0")
    violations = list(pod_rules.plain_text_secret(bad))
    assert len(violations) == 2
    assert not any("hf_something" in text or "hunter2" in text for text in violations)


def test_a_secret_in_a_config_map_is_refused():
    data = {"api_key": "x", "group.json": '{"url": "redis://:hunter2@store"}', "plain": "text"}
    properties = {"metadata": {"name": "c"}, "data": data}
    violations = list(
        pod_rules.plain_text_secret(Resource("kubernetes:core/v1:ConfigMap", "c", properties))
    )
    assert [text.partition(" holds")[0] for text in violations] == [
        "ConfigMap c: api_key",
        "ConfigMap c: group.json",
    ]


def test_a_token_may_be_mounted_with_an_account_made_for_the_pod():
    bound = pod(automountServiceAccountToken=True, serviceAccountName="small-inference-server")
    assert list(pod_rules.mounted_token(bound)) == []


def test_the_node_may_be_a_node_selector_too():
    chosen = pod(affinity=None, nodeSelector={"kubernetes.io/hostname": "n1"})
    assert list(pod_rules.misplaced_rank(chosen)) == []


def test_a_job_of_a_job_is_looked_into():
    spec = {"template": {"spec": pod(nodeName="n1").properties["spec"]}}
    properties = {"metadata": {"name": "nightly"}, "spec": {"jobTemplate": {"spec": spec}}}
    nightly = Resource("kubernetes:batch/v1:CronJob", "nightly", properties)
    (violation,) = pod_rules.misplaced_rank(nightly)
    assert violation.startswith("CronJob nightly: nodeName goes past the scheduler")
