"""Namespaces that several stacks are in: a real API server keeps them while others are there."""

from __future__ import annotations

import pytest
from kubernetes import client

from tests.cluster.applied_stack import applied, stack_mapping, write_stack
from tests.cluster.nodes import Node
from tests.cluster.plugin_choice import plugin_folders
from tests.cluster.pulumi_workspace import PulumiWorkspace
from tests.infra.recorded_program import TOKEN
from tests.programs import CONTROL_PLANE, PULUMI, needs
from tests.waiting import wait_for

pytestmark = needs(*CONTROL_PLANE)


def guest_of(control_plane, owner, name, **changes):
    """Another stack in the namespaces of the first."""
    shared = {
        "namespace": owner["namespace"],
        "namespaces": owner["namespaces"] | {"create": False},
    }
    return stack_mapping(control_plane, name, **shared | changes)


# Policies come and go: to one that comes after the last one went, guests are as plain.
@pytest.mark.parametrize("turn", ["first", "again", "once-more"])
def test_a_namespace_stays_while_another_stack_is_in_it(control_plane, turn):
    owner = stack_mapping(control_plane, f"owner-{turn}")
    guest = guest_of(control_plane, owner, f"guest-{turn}")
    names = [f"owner-{turn}-{part}" for part in ("splits", "blocks", "public")]
    with applied(control_plane, owner), control_plane.client() as api:
        core = client.CoreV1Api(api)
        for name in names:
            assert refusal(core, name) == ""
        with applied(control_plane, guest):
            for name in names:
                # The guard learns of an account a moment after it is there.
                wait_for(lambda name=name: f"of the stack guest-{turn}" in refusal(core, name))
                assert f"namespace {name} has objects" in refusal(core, name)
        for name in names:
            wait_for(lambda name=name: refusal(core, name) == "")


def refusal(core, name):
    """Why it may not be deleted now; "" where it may."""
    try:
        core.delete_namespace(name, dry_run="All")
    except client.ApiException as error:
        return str(error.body)
    return ""


@pytest.mark.slow
@needs(*PULUMI)
def test_two_stacks_of_the_real_engine(control_plane, tmp_path):
    """The first one's destroy ends with whose the namespaces are, and harms nothing of the second;
    once that one is gone, both leave nothing."""
    control_plane.add_nodes([Node("held-1")])
    owner = stack_mapping(control_plane, "holds", nnodes=1)
    server = owner["inference_server"] | {"node_port": 30401}
    guest = guest_of(control_plane, owner, "held", nnodes=1, inference_server=server)
    plugins = plugin_folders(tmp_path / "plugins")
    first, second = (
        PulumiWorkspace(
            tmp_path / one["deployment_name"], write_stack(tmp_path, one), plugins=plugins
        )
        for one in (owner, guest)
    )
    for workspace in (first, second):
        workspace.set("splitstack:group_token", TOKEN, secret=True)
        up = workspace.up()
        assert up.succeeded, up.output
    with control_plane.client() as api:
        core = client.CoreV1Api(api)
        refused = first.destroy()
        assert not refused.succeeded
        assert "has objects of the stack held, which would go with it" in refused.errors
        running = core.list_namespaced_pod("holds-splits", label_selector=HELD).items
        assert [pod.metadata.deletion_timestamp for pod in running] == [None]
        for workspace in (second, first):
            done = workspace.destroy()
            assert done.succeeded, done.output
            assert workspace.state().get("resources", [])[1:] == []
        names = {item.metadata.name for item in core.list_namespace().items}
        assert not {name for name in names if name.startswith("holds-")}
        policies = client.AdmissionregistrationV1Api(api).list_validating_admission_policy().items
        assert not [item for item in policies if item.metadata.name.startswith("holds-")]


HELD = "app.kubernetes.io/instance=held,app.kubernetes.io/component=rank"
