"""What quotas, Pod Security and admission policies of a real API server would refuse, told by
`splitstack doctor` before anything is created."""

from __future__ import annotations

import pytest
from kubernetes import client

from infra.inspection.doctor import examine
from infra.stack.file import parse_deployment
from tests.cluster.applied_stack import stack_mapping
from tests.cluster.nodes import Node
from tests.programs import CONTROL_PLANE, needs
from tests.waiting import wait_for

pytestmark = needs(*CONTROL_PLANE)


@pytest.fixture(scope="module", autouse=True)
def nodes(control_plane):
    control_plane.add_nodes([Node("tried-1"), Node("tried-2")])


def refusals(mapping):
    """What the API server would refuse."""
    found = [item.text for item in examine(parse_deployment(mapping)) if item.level == "fault"]
    return [text for text in found if text.startswith("the API server would refuse ")]


def in_namespaces_of_others(control_plane, name, labels=None):
    """A stack whose namespaces somebody else has made."""
    mapping = stack_mapping(control_plane, name)
    mapping["namespaces"] |= {"create": False}
    with control_plane.client() as api:
        core = client.CoreV1Api(api)
        for part in ("splits", "blocks", "public"):
            metadata = client.V1ObjectMeta(name=f"{name}-{part}", labels=labels)
            core.create_namespace(client.V1Namespace(metadata=metadata))
            wait_for(lambda part=part: has_account(core, f"{name}-{part}"), what="an account")
    return mapping


def has_account(core, namespace):
    return bool(core.list_namespaced_service_account(namespace).items)


def test_what_fits_everything(control_plane):
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    assert refusals(in_namespaces_of_others(control_plane, "fits", labels)) == []
    # Where the namespaces are made by the same `up`, nobody can be asked yet.
    assert refusals(stack_mapping(control_plane, "early-tried")) == []


EXCEEDED = "exceeded quota: rationed"


def test_a_quota(control_plane):
    mapping = in_namespaces_of_others(control_plane, "rationed")
    hard = {"requests.memory": "1Gi", "configmaps": "1"}
    quota = client.V1ResourceQuota(
        metadata=client.V1ObjectMeta(name="rationed"), spec=client.V1ResourceQuotaSpec(hard=hard)
    )
    with control_plane.client() as api:
        core = client.CoreV1Api(api)
        core.create_namespaced_resource_quota("rationed-splits", quota)

    def of_quota() -> list[str]:
        found = refusals(mapping)
        # kube-root-ca.crt is the one ConfigMap that may be.
        return found if any("configmaps/" in text and EXCEEDED in text for text in found) else []

    # Both have to be counted first, and the API server follows what is counted.
    found = wait_for(of_quota, what="the quota counts")
    pods = [text for text in found if "pods/rationed-rank-0 in namespace rationed-splits" in text]
    assert f"{EXCEEDED}, requested: requests.memory=" in pods[0]


def test_pod_security_of_the_pods_that_sets_would_make(control_plane):
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    mapping = in_namespaces_of_others(control_plane, "strict", labels)
    volume = {"name": "host", "mount_path": "/host", "host_path": "/srv"}
    mapping |= {"workload": "statefulset", "pod_template": {"volumes": [volume]}}
    found = refusals(mapping)
    assert found[0].startswith(
        "the API server would refuse the pod of statefulsets/strict-rank-0 in namespace "
        "strict-splits: "
    )
    assert 'violates PodSecurity "restricted:latest"' in found[0]
    assert len(found) == 2  # one for each rank; the sets themselves are taken


def test_an_admission_policy_as_a_webhook_would(control_plane):
    mapping = in_namespaces_of_others(control_plane, "policed")
    with control_plane.client() as api:
        admission = client.AdmissionregistrationV1Api(api)
        rule = {
            "apiGroups": ["apps"],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": ["deployments"],
        }
        only = {"kubernetes.io/metadata.name": "policed-blocks"}
        match = {"resourceRules": [rule], "namespaceSelector": {"matchLabels": only}}
        said = "every Deployment needs a cost centre"
        policy = {"matchConstraints": match}
        policy |= {"validations": [{"expression": "false", "message": said}]}
        metadata = {"name": "cost-centre"}
        binding = {"policyName": "cost-centre", "validationActions": ["Deny"]}
        admission.create_validating_admission_policy({"metadata": metadata, "spec": policy})
        admission.create_validating_admission_policy_binding(
            {"metadata": metadata, "spec": binding}
        )
        try:
            (text,) = wait_for(lambda: refusals(mapping), what="the policy holds")
        finally:
            admission.delete_validating_admission_policy_binding("cost-centre")
            admission.delete_validating_admission_policy("cost-centre")
    where = "deployments/policed-proxy-block in namespace policed-blocks"
    assert text.startswith(f"the API server would refuse {where}: ")
    assert said in text
