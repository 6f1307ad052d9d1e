"""Updates that cannot succeed: they end in time, name the rank, and the mended file goes on."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from kubernetes import client

from infra.inspection.status import read_cluster_status
from infra.stack.file import parse_deployment
from tests.cluster.applied_stack import stack_mapping, write_stack
from tests.cluster.nodes import Node
from tests.cluster.plugin_choice import plugin_folders
from tests.cluster.pulumi_workspace import PulumiWorkspace
from tests.infra.recorded_program import DIGEST
from tests.programs import CONTROL_PLANE, PULUMI, needs

pytestmark = [needs(*CONTROL_PLANE, *PULUMI), pytest.mark.slow]

DEPLOYMENT = "splitstack:deployment"
GPU_NODE, OTHER_GPU_NODE = "one-gpu", "another-gpu"


@pytest.fixture(scope="module", autouse=True)
def nodes(control_plane):
    control_plane.add_nodes(
        [Node("any-node"), Node(GPU_NODE, gpus=1), Node(OTHER_GPU_NODE, gpus=1)]
    )


def ranks_on(*nodes: str) -> list[dict[str, Any]]:
    return [{"rank": rank, "node_id": node} for rank, node in enumerate(nodes)]


CASES = {
    "no-image": (
        {"common_params": {"image": f"missing.test/runner@{DIGEST}"}},
        (0, 1),
        "image",
        ("common_params.image", f"registry.test/runner@{DIGEST}"),
    ),
    "no-node": (
        {"per_rank_params": ranks_on("any-node", "no-such-node")},
        (1,),
        "node affinity",
        ("per_rank_params[1].node_id", "any-node"),
    ),
    "gpu-taken": (
        {"per_rank_params": ranks_on(GPU_NODE, GPU_NODE), "gpu_pinning": "resource"},
        (0, 1),
        "nvidia.com/gpu",
        ("per_rank_params[1].node_id", OTHER_GPU_NODE),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_failed_update_and_its_mend(control_plane, tmp_path, name):
    changes, suspects, reason, (path, mended) = CASES[name]
    mapping = stack_mapping(control_plane, name)
    mapping["common_params"] |= changes.pop("common_params", {})
    # The ranks alone: their failure is what is looked at, and the rest takes its time.
    mapping |= {"proxy_blocks": [], "inference_server": {"enabled": False}}
    mapping |= changes | {"timeouts": {"create_s": 15}}
    workspace = PulumiWorkspace(
        tmp_path / "workspace",
        write_stack(tmp_path, mapping),
        plugins=plugin_folders(tmp_path / "plugin"),
    )
    workspace.set("splitstack:group_token", "a token of these tests", secret=True)
    try:
        run = workspace.up()
        assert not run.succeeded
        named = [rank for rank in suspects if f"{name}-rank-{rank}" in run.errors]
        assert named, run.errors

        # The engine stops waiting at the first that fails; a GPU is taken by whichever came first.
        pods = {pod.rank: pod for pod in read_cluster_status(name, parse_deployment(mapping)).pods}
        assert all(reason in pods[rank].reason for rank in named), pods

        workspace.set(f"{DEPLOYMENT}.{path}", mended)
        run = workspace.up()
        assert run.succeeded, run.output
        assert running(control_plane, name) == {f"{name}-rank-0", f"{name}-rank-1"}
    finally:
        assert workspace.destroy().succeeded


def running(control_plane, name: str) -> set[str]:
    with control_plane.client() as api:
        pods = client.CoreV1Api(api).list_namespaced_pod(f"{name}-splits").items
    return {pod.metadata.name for pod in pods if pod.status.phase == "Running"}


def test_five_mistakes_are_told_together_before_anything_is_created(control_plane, tmp_path):
    mapping = stack_mapping(control_plane, "mistakes")
    mapping["nnodes"] = 0
    mapping["common_params"]["master_port"] = 70000
    mapping["gpu_pinning"] = "by-hand"
    mapping["namespace"] = "Not A Name"
    mapping["replicas"] = 3
    stack_file = tmp_path / "Pulumi.mistakes.yaml"
    stack_file.write_text(yaml.safe_dump({"config": {DEPLOYMENT: mapping}}))
    workspace = PulumiWorkspace(
        tmp_path / "workspace", stack_file, plugins=plugin_folders(tmp_path / "plugin")
    )
    run = workspace.up()
    assert not run.succeeded
    for key in ("nnodes", "common_params.master_port", "gpu_pinning", "namespace", "replicas"):
        assert f"{key}" in run.errors
    assert "pulumi config set --secret splitstack:group_token" in run.errors
    assert "Traceback" not in run.output
    assert not any("Namespace::" in resource for resource in run.operations)
