"""Edits for which ranks have to go before others come: the real engine, full nodes.

One story: each test goes on where the one before it ended.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from kubernetes import client

from infra.cluster.labels import INSTANCE
from tests.cluster.applied_stack import stack_mapping, write_stack
from tests.cluster.nodes import Node
from tests.cluster.plugin_choice import plugin_folders
from tests.cluster.pulumi_workspace import PulumiRun, PulumiWorkspace
from tests.programs import CONTROL_PLANE, PULUMI, needs

pytestmark = [needs(*CONTROL_PLANE, *PULUMI), pytest.mark.slow]

NAME = "room"
DEPLOYMENT = "splitstack:deployment"
NODE = "full-node"
ROOMS = {"Stash::rank-0-room": "replace", "Stash::ranks-room": "replace"}


@pytest.fixture(scope="module")
def workspace(control_plane, tmp_path_factory):
    # A master with one core and three ranks with one each leave too little for a larger one.
    control_plane.add_nodes([Node(NODE, cpu="4500m")])
    mapping = stack_mapping(control_plane, NAME, nnodes=3, per_rank_params=ranks(1, 1, 1))
    mapping |= {"proxy_blocks": [], "inference_server": {"enabled": False}}
    # Whatever waits for room that is not given up ends soon.
    mapping |= {"timeouts": {"create_s": 20}}
    folder = tmp_path_factory.mktemp("room")
    plugins = plugin_folders(folder / "plugin")
    found = PulumiWorkspace(folder / "workspace", write_stack(folder, mapping), plugins=plugins)
    found.set("splitstack:group_token", "a token of these tests", secret=True)
    yield found
    assert found.destroy().succeeded


def ranks(*cores: float) -> list[dict[str, Any]]:
    return [
        {"rank": rank, "node_id": NODE, "cpu": cpu, "memory": "2Gi"}
        for rank, cpu in enumerate(cores)
    ]


def edit(workspace: PulumiWorkspace, **changes: object) -> None:
    """What a person does to the stack file with an editor."""
    document = yaml.safe_load(workspace.stack_file.read_text())
    deployment = document["config"][DEPLOYMENT]
    for key, value in changes.items():
        if value is None:
            del deployment[key]
        else:
            deployment[key] = value
    workspace.stack_file.write_text(yaml.safe_dump(document))


def pods(control_plane) -> dict[str, str]:
    """Every pod of ours that runs, with its uid."""
    with control_plane.client() as api:
        found = client.CoreV1Api(api).list_namespaced_pod(
            f"{NAME}-splits", label_selector=f"{INSTANCE}={NAME}"
        )
    return {
        pod.metadata.name: pod.metadata.uid for pod in found.items if pod.status.phase == "Running"
    }


def order(run: PulumiRun) -> list[tuple[str, str]]:
    """(operation, resource) as they began; only of ranks."""
    return [
        (step, resource.partition("::")[2])
        for step, resource in run.steps
        if re.fullmatch(rf"(Pod|StatefulSet)::{NAME}-rank-\d", resource)
    ]


def test_fewer_and_larger_ranks(workspace, control_plane):
    run = workspace.up()
    assert run.succeeded, run.output
    assert pods(control_plane).keys() == {f"{NAME}-rank-{rank}" for rank in range(3)}

    edit(workspace, nnodes=2, per_rank_params=ranks(1, 2))
    preview = workspace.preview()
    assert "all pods: nnodes 3 -> 2" in preview.messages
    run = workspace.up()
    assert run.succeeded, run.output
    assert pods(control_plane).keys() == {f"{NAME}-rank-0", f"{NAME}-rank-1"}
    replaced = {f"Pod::{NAME}-rank-{rank}": "replace" for rank in range(2)}
    removed = {
        f"Pod::{NAME}-rank-2": "remove-pending-replace", f"ConfigMap::{NAME}-rank-2": "delete"
    }  # fmt: skip
    edited = {f"ConfigMap::{NAME}-{name}": "update" for name in ("spec", "rank-1")}
    asked = {f"ConfigMap::{NAME}-rollout": "replace", f"Job::{NAME}-rollout": "replace"}
    assert run.changes == replaced | removed | ROOMS | edited | asked
    assert preview.changes == run.changes
    # Rank 0 goes first, and all have gone before any comes.
    begun = order(run)
    assert begun[0] == ("delete-replaced", f"{NAME}-rank-0")
    gone = [index for index, (operation, _) in enumerate(begun) if operation == "delete-replaced"]
    came = [index for index, (operation, _) in enumerate(begun) if operation != "delete-replaced"]
    assert len(gone) == 3
    assert max(gone) < min(came)
    assert workspace.up().changes == {}


def test_a_workload_that_is_not_given_replaces_nothing(workspace, control_plane):
    before = pods(control_plane)
    edit(workspace, workload=None)
    for run in (workspace.preview(), workspace.up()):
        assert not run.succeeded
        assert "workload: is statefulset where it is not given" in run.errors
        assert "config set --path 'splitstack:deployment.workload' pod" in run.errors
    assert pods(control_plane) == before


@pytest.mark.parametrize(
    ("workload", "name"), [("statefulset", "room-rank-{}-0"), ("pod", "room-rank-{}")]
)
def test_another_workload(workspace, control_plane, workload, name):
    workspace.set(f"{DEPLOYMENT}.workload", workload)
    run = workspace.up()
    assert run.succeeded, run.output
    assert "all pods: workload" in run.messages
    assert pods(control_plane).keys() == {name.format(rank) for rank in range(2)}
    assert workspace.up().changes == {}


def test_an_update_that_failed_on_its_way_goes_on(workspace, control_plane):
    """The room is made once: what has come since is left alone by the next try."""
    edit(workspace, workload="statefulset", per_rank_params=ranks(1, 30))
    run = workspace.up()
    assert not run.succeeded  # no node has 30 cores
    assert f"{NAME}-rank-1" in run.errors
    before = pods(control_plane)
    assert before.keys() == {f"{NAME}-rank-0-0"}
    edit(workspace, per_rank_params=ranks(1, 2))
    run = workspace.up()
    assert run.succeeded, run.output
    after = pods(control_plane)
    assert after.pop(f"{NAME}-rank-1-0")
    assert after == before
    assert workspace.up().changes == {}
