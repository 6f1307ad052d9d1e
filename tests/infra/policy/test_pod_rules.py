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
    with_security,
)

RULES = [
    pod_rules.mutable_image,
    pod_rules.unrestricted_pod,
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
        (
            pod_rules.mutable_image,
            pod(initContainers=[{"name": "first", "image": "busybox"}]),
            "container first: image 'busybox' is not pinned",
        ),
        (pod_rules.unrestricted_pod, pod(hostNetwork=True), "hostNetwork must not be set"),
        (pod_rules.unrestricted_pod, pod(hostPID=True), "hostPID must not be set"),
        (
            pod_rules.unrestricted_pod,
            pod(volumes=[{"name": "models", "hostPath": {"path": "/models"}}]),
            "volume models must not be a hostPath",
        ),
        (
            pod_rules.unrestricted_pod,
            with_security(privileged=True),
            "container stage: privileged must not be set",
        ),
        (
            pod_rules.unrestricted_pod,
            with_security(allowPrivilegeEscalation=True),
            "allowPrivilegeEscalation must be false",
        ),
        (
            pod_rules.unrestricted_pod,
            with_security(capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
            "capabilities.add must not list SYS_ADMIN",
        ),
        (
            pod_rules.unrestricted_pod,
            with_security(capabilities={}),
            "capabilities.drop must list ALL",
        ),
        (
            pod_rules.unrestricted_pod,
            with_security(runAsNonRoot=False),
            "runAsNonRoot must be true",
        ),
        (pod_rules.unrestricted_pod, with_security(runAsUser=0.0), "runAsUser must not be 0"),
        (
            pod_rules.unrestricted_pod,
            with_security(seccompProfile={"type": "Unconfined"}),
            "seccompProfile.type must be RuntimeDefault or Localhost",
        ),
        (
            pod_rules.unrestricted_pod,
            with_container(ports=[{"containerPort": 8080.0, "hostPort": 8080.0}]),
            "hostPort 8080 must not be taken",
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


def test_several_faults_are_all_said():
    bad = with_container(image=f"{DIGEST}0", securityContext=None, resources=None)
    assert len(list(pod_rules.mutable_image(bad))) == 1
    faults = [text.rpartition(": ")[2] for text in pod_rules.unrestricted_pod(bad)]
    assert faults == ["allowPrivilegeEscalation must be false", "capabilities.drop must list ALL"]


def test_the_node_may_be_a_node_selector_too():
    chosen = pod(affinity=None, nodeSelector={"kubernetes.io/hostname": "n1"})
    assert list(pod_rules.misplaced_rank(chosen)) == []


def test_a_job_of_a_job_is_looked_into():
    spec = {"template": {"spec": pod(hostNetwork=True).properties["spec"]}}
    properties = {"metadata": {"name": "nightly"}, "spec": {"jobTemplate": {"spec": spec}}}
    nightly = Resource("kubernetes:batch/v1:CronJob", "nightly", properties)
    (violation,) = pod_rules.unrestricted_pod(nightly)
    assert violation == "CronJob nightly: hostNetwork must not be set"
