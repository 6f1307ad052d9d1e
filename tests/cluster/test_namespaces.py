"""Namespaces that several stacks are in: a real API server keeps them while others are there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client

from tests.cluster.applied_stack import applied, stack_mapping
from tests.cluster.control_plane import ControlPlane
from tests.programs import CONTROL_PLANE, needs
from tests.waiting import wait_for

pytestmark = needs(*CONTROL_PLANE)


@pytest.fixture
def first_guarded(tmp_path: Path) -> Iterator[ControlPlane]:
    """Of its own: once the last guard of a cluster has gone, its API server learns of no new
    ConfigMap for another one until it is started again."""
    with ControlPlane.start(tmp_path, "guarded") as started:
        yield started


def test_a_namespace_stays_while_another_stack_is_in_it(first_guarded):
    control_plane = first_guarded
    owner = stack_mapping(control_plane, "owner")
    owner["namespaces"] |= {"guard": True}
    shared = {
        "namespace": owner["namespace"],
        "namespaces": owner["namespaces"] | {"create": False},
    }
    guest = stack_mapping(control_plane, "guest", **shared)
    names = ["owner-splits", "owner-blocks", "owner-public"]
    with applied(control_plane, owner), control_plane.client() as api:
        core = client.CoreV1Api(api)
        with applied(control_plane, guest):
            for name in names:
                # The guard learns of a ConfigMap a moment after it is there.
                wait_for(lambda name=name: "of the stack guest" in refusal(core, name))
                assert f"namespace {name} has objects" in refusal(core, name)
        for name in names:
            core.delete_collection_namespaced_config_map(
                name, label_selector="app.kubernetes.io/instance=guest"
            )
            wait_for(lambda name=name: refusal(core, name) == "")


def refusal(core: client.CoreV1Api, name: str) -> str:
    """Why it may not be deleted now; "" where it may."""
    try:
        core.delete_namespace(name, dry_run="All")
    except client.ApiException as error:
        return str(error.body)
    return ""
