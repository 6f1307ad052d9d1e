"""The control plane behaves as a cluster: schedules, refuses, logs, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta

import kubernetes.client
import kubernetes.config
import psutil
import pytest
from kubernetes.client import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import DynamicApiError

from tests.cluster.control_plane import ControlPlane
from tests.cluster.nodes import GPU_DRIVER, Node
from tests.cluster.pulumi_workspace import REPOSITORY
from tests.programs import CONTROL_PLANE, needs, program
from tests.waiting import wait_for

pytestmark = needs(*CONTROL_PLANE)

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
HARDENED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.fixture(scope="module")
def client(control_plane):
    control_plane.add_nodes([Node("gpu-node", gpus=1, labels={"zone": "a"}), Node("cpu-node")])
    with control_plane.client() as client:
        yield client


@pytest.fixture
def core(client):
    return kubernetes.client.CoreV1Api(client)


def pod(name, image="registry.test/image:1", node="", gpus=0, **spec):
    container = {"name": "main", "image": image, "securityContext": HARDENED}
    if gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}}
    selector = {"kubernetes.io/hostname": node} if node else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container], "nodeSelector": selector, **spec},
    }


def condition(core, name, kind):
    found = core.read_namespaced_pod(name, "default").status.conditions or []
    return next((item for item in found if item.type == kind), None)


def is_ready(core, name):
    ready = condition(core, name, "Ready")
    return ready is not None and ready.status == "True"


def reasons(core, name):
    return {event.reason for event in events(core, name)}


def events(core, name):
    return core.list_namespaced_event("default", field_selector=f"involvedObject.name={name}").items


def test_a_gpu_is_given_once(core):
    core.create_namespaced_pod("default", pod("first", gpus=1))
    wait_for(lambda: is_ready(core, "first"))
    assert core.read_namespaced_pod("first", "default").spec.node_name == "gpu-node"
    core.create_namespaced_pod("default", pod("second", gpus=1))
    wait_for(lambda: "FailedScheduling" in reasons(core, "second"))
    core.delete_namespaced_pod("first", "default")
    wait_for(lambda: is_ready(core, "second"))


def test_a_gpu_is_given_to_one_claim(control_plane, client, core):
    control_plane.add_gpu_driver([Node("gpu-node", gpus=1)])
    claim = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": "gpu"},
        "spec": {
            "devices": {
                "requests": [
                    {
                        "name": "gpu",
                        "exactly": {
                            "deviceClassName": GPU_DRIVER,
                            "selectors": [
                                {
                                    "cel": {
                                        "expression": f"device.attributes['{GPU_DRIVER}'].index==0"
                                    }
                                }
                            ],
                        },
                    }
                ]
            }
        },
    }
    kubernetes.client.ResourceV1Api(client).create_namespaced_resource_claim("default", claim)
    claimed = [{"name": "gpu", "resourceClaimName": "gpu"}]
    core.create_namespaced_pod("default", pod("claiming", resourceClaims=claimed))
    wait_for(lambda: is_ready(core, "claiming"))
    assert core.read_namespaced_pod("claiming", "default").spec.node_name == "gpu-node"


def test_pod_security_and_strict_fields(client, core):
    metadata = {"name": "hardened", "labels": RESTRICTED}
    core.create_namespace({"metadata": metadata})
    account = "default"
    wait_for(lambda: exists(core.read_namespaced_service_account, account, "hardened"))
    core.create_namespaced_pod("hardened", pod("good"))
    privileged = pod("bad")
    privileged["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    with pytest.raises(ApiException, match="violates PodSecurity"):
        core.create_namespaced_pod("hardened", privileged)
    misspelled = pod("misspelled", nodeSelectr={})
    pods = DynamicClient(client).resources.get(api_version="v1", kind="Pod")
    with pytest.raises(DynamicApiError, match="unknown field"):
        pods.create(misspelled, namespace="default", query_params=[("fieldValidation", "Strict")])


def exists(read, *names):
    try:
        return read(*names)
    except ApiException as refusal:
        if refusal.status == 404:
            return None
        raise


def test_what_fails_on_nodes_fails_here(control_plane, core):
    core.create_namespaced_pod("default", pod("no-image", "missing.test/image:1"))
    core.create_namespaced_pod("default", pod("crashing", "crashing.test/image:1"))
    core.create_namespaced_pod("default", pod("no-node", node="absent"))
    waits = {"no-image": "ImagePullBackOff", "crashing": "CrashLoopBackOff"}
    for name, reason in waits.items():
        wait_for(lambda name=name: waiting_reason(core, name))
        assert waiting_reason(core, name) == reason
        assert not is_ready(core, name)
    wait_for(lambda: {"Failed"} <= reasons(core, "no-image"))
    wait_for(lambda: {"BackOff"} <= reasons(core, "crashing"))
    wait_for(lambda: {"FailedScheduling"} <= reasons(core, "no-node"))
    control_plane.set_container_log("loading", "out of memory")
    log = core.read_namespaced_pod_log("crashing", "default", tail_lines=1)
    assert log.splitlines() == ["out of memory"]


def waiting_reason(core, name):
    statuses = core.read_namespaced_pod(name, "default").status.container_statuses or []
    return statuses[0].state.waiting.reason if statuses and statuses[0].state.waiting else None


def test_users_without_rights_and_expired_certificates(control_plane):
    stranger = control_plane.kubeconfig_for("stranger")
    with kubernetes.config.new_client_from_config(str(stranger)) as client:
        with pytest.raises(ApiException) as refusal:
            kubernetes.client.CoreV1Api(client).list_node()
        assert refusal.value.status == 403
    expired = control_plane.kubeconfig_for("former", ("system:masters",), timedelta(hours=-1))
    with kubernetes.config.new_client_from_config(str(expired)) as client:
        with pytest.raises(ApiException) as refusal:
            kubernetes.client.CoreV1Api(client).list_node()
        assert refusal.value.status == 401


def test_kubectl_sees_the_version(control_plane):
    command = [program("kubectl"), "--kubeconfig", control_plane.kubeconfig, "version"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Server Version: v1.36.3" in output


def test_a_second_one_beside_the_first_ends_with_its_process(control_plane, tmp_path):
    """Killed without a chance to clean up, as a test run may be."""
    script = (
        "import sys, time; from pathlib import Path\n"
        "from tests.cluster.control_plane import ControlPlane\n"
        "with ControlPlane.start(Path(sys.argv[1]), 'second') as second:\n"
        "    print(*second.pids().values(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    owner = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) == 5
        assert all(psutil.pid_exists(pid) for pid in pids)
    finally:
        os.kill(owner.pid, signal.SIGKILL)
        owner.communicate()
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert all(psutil.pid_exists(pid) for pid in control_plane.pids().values())


def test_nothing_of_it_is_left(tmp_path):
    with ControlPlane.start(tmp_path) as short_lived:
        pids = short_lived.pids()
    assert not any(psutil.pid_exists(pid) for pid in pids.values())
