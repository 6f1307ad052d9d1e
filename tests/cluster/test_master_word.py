"""What a master says of its group in `splitstack status`: a real one, asked through the API server
and a kubelet's forward."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client

from contract.specs import MasterSpec, render
from infra.inspection.status import read_cluster_status, render_cluster_status
from infra.stack.file import parse_deployment
from tests.cluster.applied_stack import applied, stack_mapping
from tests.cluster.control_plane import ControlPlane
from tests.cluster.nodes import Node
from tests.programs import CONTROL_PLANE, needs
from tests.waiting import free_ports, wait_for

pytestmark = needs(*CONTROL_PLANE)


@pytest.fixture
def master(control_plane: ControlPlane, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """To which nothing was handed yet, at the port where this control plane's forwards come out."""
    (port,) = free_ports(1)
    spec = MasterSpec("asked", "127.0.0.1", port, control_plane.master_port)
    (tmp_path / "master.json").write_text(render(spec))
    (tmp_path / "token").write_text("0" * 64)
    # The ConfigMap with the group's spec is optional, and not there.
    options = {"--spec": "master.json", "--group-spec": "none.json", "--token-file": "token"}
    command = [sys.executable, "-m", "runner.master"]
    for option, file in options.items():
        command += [option, str(tmp_path / file)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    yield process
    process.kill()
    process.wait()


def not_ready(control_plane: ControlPlane, name: str, namespace: str) -> None:
    """As a kubelet reports a master whose group does not serve."""
    conditions = [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]
    running = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    container = {"ready": False, "restartCount": 0, "image": "", "imageID": "", "state": running}
    statuses = [container | {"name": name} for name in ("master", "stage")]
    statuses[1] = statuses[1] | {"ready": True}
    status = {"phase": "Running", "conditions": conditions, "containerStatuses": statuses}
    with control_plane.client() as api:
        client.CoreV1Api(api).patch_namespaced_pod_status(name, namespace, {"status": status})


def test_the_masters_own_reason(control_plane: ControlPlane, master: object) -> None:
    control_plane.add_nodes([Node("asked-node")])
    mapping = stack_mapping(control_plane, "asked")
    deployment = parse_deployment(mapping)
    with applied(control_plane, mapping):
        wait_for(lambda: read_cluster_status("s", deployment).pods[0].ready, 60, "rank 0 ready")
        not_ready(control_plane, "asked-rank-0", "asked-splits")
        word = "no spec is served yet: one is to be pushed"

        def told() -> bool:
            return word in read_cluster_status("s", deployment).pods[0].reason

        wait_for(told, 60, "the master's reason")
        found = read_cluster_status("s", deployment)
        assert found.pods[0].reason == f"not ready: master: {word}"
        assert f"asked-rank-0: not ready: master: {word}" in render_cluster_status(found)
        told_json = json.loads(json.dumps(found.to_json()))["master"]
        assert (told_json["state"], told_json["reason"]) == ("starting", word)


def test_a_master_that_does_not_answer_costs_nothing(control_plane: ControlPlane) -> None:
    control_plane.add_nodes([Node("silent-node")])
    mapping = stack_mapping(control_plane, "silent")
    deployment = parse_deployment(mapping)
    with applied(control_plane, mapping):
        wait_for(lambda: read_cluster_status("s", deployment).ready, 60, "ready")
        not_ready(control_plane, "silent-rank-0", "silent-splits")
        found = read_cluster_status("s", deployment)
        assert found.pods[0].reason == "not ready: master"
        assert found.master is None
