"""`protect` with the real engine and a real API server: destroy refuses, and how it lets go."""

from __future__ import annotations

import pytest
from kubernetes import client

from tests.cluster.applied_stack import stack_mapping, write_stack
from tests.cluster.nodes import Node
from tests.cluster.plugin_choice import plugin_folders
from tests.cluster.pulumi_workspace import PulumiWorkspace
from tests.infra.recorded_program import TOKEN
from tests.programs import CONTROL_PLANE, PULUMI, needs

pytestmark = [needs(*CONTROL_PLANE, *PULUMI), pytest.mark.slow]


@pytest.fixture
def workspace(control_plane, tmp_path):
    control_plane.add_nodes([Node("protected-1")])
    mapping = stack_mapping(control_plane, "protected", nnodes=1, protect=True)
    plugins = plugin_folders(tmp_path / "plugins")
    found = PulumiWorkspace(tmp_path / "workspace", write_stack(tmp_path, mapping), plugins=plugins)
    found.set("splitstack:group_token", TOKEN, secret=True)
    return found


def test_destroy_refuses_until_the_key_is_taken_back(workspace, control_plane):
    up = workspace.up()
    assert up.succeeded, up.output
    refused = workspace.destroy(preview=True)
    assert not refused.succeeded
    assert "cannot be deleted\nbecause it is protected" in refused.errors
    with control_plane.client() as api:
        core = client.CoreV1Api(api)
        rank = core.read_namespaced_pod("protected-rank-0", "protected-splits")
        assert rank.metadata.deletion_timestamp is None
        # Whoever goes round the preview loses what runs, not what is protected.
        assert not workspace.destroy().succeeded
        names = {item.metadata.name for item in core.list_namespace().items}
        assert {"protected-splits", "protected-blocks", "protected-public"} <= names
        again = workspace.up()
        assert again.succeeded, again.output
        workspace.set("splitstack:deployment.protect", "false")
        let_go = workspace.up()
        assert let_go.succeeded, let_go.output
        assert let_go.changes == {}
        done = workspace.destroy()
        assert done.succeeded, done.output
        names = {item.metadata.name for item in core.list_namespace().items}
        assert not {name for name in names if name.startswith("protected-")}
