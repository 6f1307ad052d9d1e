"""`splitstack status` of a stack in a real cluster: what is there, and why what is not is not."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from kubernetes import client

from infra.inspection.status import read_cluster_status, render_cluster_status
from infra.stack.file import parse_deployment
from tests.cluster.applied_stack import DEMO, applied, stack_mapping, write_stack
from tests.cluster.nodes import Node
from tests.infra.cli.test_app import splitstack
from tests.infra.recorded_program import DIGEST
from tests.programs import CONTROL_PLANE, needs
from tests.waiting import free_ports, wait_for

pytestmark = needs(*CONTROL_PLANE)


@pytest.fixture(scope="module", autouse=True)
def nodes(control_plane):
    control_plane.add_nodes([Node("status-node", cpu="64", memory="512Gi")])


def status(mapping):
    return read_cluster_status("a-stack", parse_deployment(mapping))


def rank(mapping, number):
    return next(pod for pod in status(mapping).pods if pod.rank == number)


def with_reason(mapping, number, word):
    """The rank's status once its reason has the word."""

    def found():
        pod = rank(mapping, number)
        return pod if word in pod.reason else None

    return wait_for(found, what=f"rank {number}: {word}")


def images(name):
    return {"model_name": DEMO, "image": f"{name}@{DIGEST}"}


def test_a_stack_that_is_well(control_plane, tmp_path):
    mapping = stack_mapping(control_plane, "well")
    # A name that leaves no room for what controllers append to those of pods.
    mapping["proxy_blocks"][0]["block_id"] = "b" * 52
    with applied(control_plane, mapping):
        wait_for(lambda: status(mapping).ready, 60, "every pod ready")
        found = status(mapping)
        assert [pod.name for pod in found.pods][:2] == ["well-rank-0", "well-rank-1"]
        assert [pod.component for pod in found.pods][2:] == ["proxy-block", "inference-server"]
        assert {pod.node for pod in found.pods if pod.node} == {pod.node for pod in found.pods}
        assert not any(pod.reason for pod in found.pods)
        path = str(write_stack(tmp_path, mapping))
        done = splitstack(tmp_path, "status", "-s", path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("well (stack well): 4 of 4 ready")
        done = splitstack(tmp_path, "status", "-s", path, "--json")
        assert json.loads(done.stdout)["ready"] is True

        with control_plane.client() as api:
            core = client.CoreV1Api(api)
            core.delete_namespaced_pod("well-rank-1", "well-splits", grace_period_seconds=0)
        pod = with_reason(mapping, 1, "no such pod")
        assert (pod.phase, pod.ready) == ("missing", False)
        assert "pulumi up --refresh" in pod.reason
        done = splitstack(tmp_path, "status", "-s", path)
        assert done.returncode == 1
        assert "3 of 4 ready" in done.stdout


def test_why_the_last_edit_failed(control_plane):
    image = f"failing.test/proxy-block@{DIGEST}"
    mapping = stack_mapping(control_plane, "red")
    mapping["images"]["proxy_block"] = image
    with applied(control_plane, mapping):
        wait_for(lambda: (edit := status(mapping).edit) and edit.phase == "failed", what="failed")
        found = status(mapping)
        # What was served before goes on.
        wait_for(lambda: status(mapping).ready, 60, "every pod ready")
        expected = "failed: rank 1: its weights take 9 GB of 4 GB"
        assert str(found.edit).startswith("the last edit (red-rollout-")
        assert expected in str(found.edit)
        assert expected in render_cluster_status(found)
        assert found.to_json()["edit"]["reason"] == "rank 1: its weights take 9 GB of 4 GB"

        with control_plane.client() as api:
            core, labels = client.CoreV1Api(api), "app.kubernetes.io/component=rollout"
            core.delete_collection_namespaced_pod(
                "red-splits", label_selector=labels, grace_period_seconds=0
            )

        def told_by_its_job():
            edit = status(mapping).edit
            return edit if edit and "its pod was deleted" in edit.reason else None

        edit = wait_for(told_by_its_job, 30, "the pod gone")
        assert (edit.name, edit.phase) == (found.edit.name, "failed")


def test_an_image_that_cannot_be_pulled(control_plane):
    mapping = stack_mapping(control_plane, "no-image", common_params=images("missing.test/runner"))
    with applied(control_plane, mapping):
        pod = with_reason(mapping, 1, "image ")
        assert "missing.test/runner" in pod.reason
        assert "not found" in pod.reason


def test_a_crash_with_the_end_of_its_log(control_plane):
    lines = [f"line {number}" for number in range(30)] + ["ValueError: the weights are not there"]
    control_plane.set_container_log(*lines)
    mapping = stack_mapping(control_plane, "crashes", common_params=images("crashing.test/runner"))
    with applied(control_plane, mapping):
        pod = with_reason(mapping, 1, "crash: ")
        assert "container stage ended with code 1" in pod.reason
        assert "the kubelet starts it again in " in pod.reason
        assert pod.reason.endswith(" s, 40 s after it ended")
        assert pod.restarts == 3
        assert pod.log[-1] == "ValueError: the weights are not there"
        assert len(pod.log) == 10
        assert "  | " in render_cluster_status(status(mapping))


def test_an_evicted_pod_with_what_mends_it(control_plane):
    mapping = stack_mapping(control_plane, "evicted")
    with applied(control_plane, mapping):
        wait_for(lambda: rank(mapping, 1).ready, 60, "rank 1 ready")
        with control_plane.client() as api:
            failed = {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}
            ready = [{"type": "Ready", "status": "False"}]
            client.CoreV1Api(api).patch_namespaced_pod_status(
                "evicted-rank-1", "evicted-splits", {"status": failed | {"conditions": ready}}
            )
        pod = with_reason(mapping, 1, "failed: Evicted: low on memory")
        assert pod.reason.endswith("it stays so until: pulumi up")


@pytest.mark.parametrize(("minutes", "word"), [(60, "not ready: stage"), (0, "crash: ")])
def test_an_old_crash_is_not_why_a_rank_waits_for_others(control_plane, minutes, word):
    mapping = stack_mapping(control_plane, f"waits-{minutes}")
    name, namespace = f"waits-{minutes}-rank-1", f"waits-{minutes}-splits"
    with applied(control_plane, mapping):
        wait_for(lambda: rank(mapping, 1).ready, 60, "rank 1 ready")
        began = datetime.now(UTC) - timedelta(minutes=minutes)
        ended = {"exitCode": 1, "startedAt": None, "finishedAt": began.isoformat()}
        container = {
            "name": "stage",
            "image": "runner",
            "imageID": "",
            "ready": False,
            "restartCount": 1,
            "state": {"running": {"startedAt": began.isoformat()}},
            "lastState": {"terminated": ended},
        }
        status = {
            "containerStatuses": [container],
            "conditions": [{"type": "Ready", "status": "False"}],
        }
        with control_plane.client() as api:
            core = client.CoreV1Api(api)
            core.patch_namespaced_pod_status(name, namespace, {"status": status})
        assert word in with_reason(mapping, 1, word).reason


def test_only_namespaces_that_the_stack_uses_are_asked_about(control_plane):
    path = control_plane.kubeconfig_for("ranks-only")
    with control_plane.client() as api:
        client.CoreV1Api(api).create_namespace({"metadata": {"name": "narrow-splits"}})
        rbac = client.RbacAuthorizationV1Api(api)
        group = "rbac.authorization.k8s.io"
        binding = {
            "metadata": {"name": "ranks-only"},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "User", "name": "ranks-only", "apiGroup": group}],
        }
        rbac.create_namespaced_role_binding("narrow-splits", binding)
    clusters = {"home": {"kubeconfig": str(path)}}
    changes = {"proxy_blocks": [], "inference_server": {"enabled": False}}
    mapping = stack_mapping(control_plane, "narrow", clusters=clusters, **changes)
    wait_for(lambda: rank(mapping, 0).phase == "missing", what="the right to list")


def test_a_node_that_does_not_exist(control_plane):
    ranks = [{"rank": 1, "node_id": "no-such-node"}]
    mapping = stack_mapping(control_plane, "nowhere", per_rank_params=ranks)
    with applied(control_plane, mapping):
        pod = with_reason(mapping, 1, "scheduling: ")
        assert "node affinity" in pod.reason
        assert "it may run on no-such-node only" in pod.reason
        wait_for(lambda: rank(mapping, 0).ready, what="rank 0 ready")


def test_a_cluster_that_cannot_be_reached(control_plane, tmp_path):
    (port,) = free_ports(1)
    content = json.loads(control_plane.kubeconfig.read_text())
    content["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(content))
    mapping = stack_mapping(control_plane, "away", clusters={"home": {"kubeconfig": str(path)}})
    pod = rank(mapping, 0)
    assert pod.phase == "unknown"
    expected = f"cluster home cannot be reached at https://127.0.0.1:{port}: Connection refused"
    assert pod.reason == expected


def test_credentials_that_have_expired(control_plane):
    path = control_plane.kubeconfig_for("expired-status", valid=timedelta(seconds=-5))
    mapping = stack_mapping(control_plane, "late", clusters={"home": {"kubeconfig": str(path)}})
    assert "they have expired or were revoked" in rank(mapping, 0).reason


def test_a_user_without_rights(control_plane):
    path = control_plane.kubeconfig_for("nobody-status")
    mapping = stack_mapping(control_plane, "closed", clusters={"home": {"kubeconfig": str(path)}})
    assert "you may not list pods in namespace closed-splits" in rank(mapping, 0).reason


def test_a_kubeconfig_that_is_not_there(control_plane, tmp_path):
    path = tmp_path / "none"
    mapping = stack_mapping(control_plane, "lost", clusters={"home": {"kubeconfig": str(path)}})
    assert f"{path} is no file" in rank(mapping, 0).reason
