"""Ranks on two clusters: each object on the right one, all meeting where the stack file says."""

from __future__ import annotations

import json

import kubernetes.client
import pytest

from tests.cluster.applied_stack import stack_mapping, write_stack
from tests.cluster.control_plane import ControlPlane
from tests.cluster.nodes import Node
from tests.cluster.plugin_choice import plugin_folders
from tests.cluster.pulumi_workspace import PulumiWorkspace
from tests.infra.recorded_program import TOKEN
from tests.programs import CONTROL_PLANE, PULUMI, needs

pytestmark = [needs(*CONTROL_PLANE, *PULUMI), pytest.mark.slow]

INSTANCE = "app.kubernetes.io/instance=apart"
RANKS = [
    {"rank": 0, "cluster_id": "home", "node_id": "here", "advertise_address": "203.0.113.1"},
    {"rank": 1, "cluster_id": "away", "node_id": "there", "advertise_address": "203.0.113.2"},
]


@pytest.fixture
def away(tmp_path_factory):
    with ControlPlane.start(tmp_path_factory.mktemp("away"), "away") as running:
        yield running


def found(control_plane):
    """{kind: names} of what carries the stack's labels."""
    with control_plane.client() as client:
        core = kubernetes.client.CoreV1Api(client)
        apps = kubernetes.client.AppsV1Api(client)
        lists = {
            "Namespace": core.list_namespace,
            "Pod": core.list_pod_for_all_namespaces,
            "Service": core.list_service_for_all_namespaces,
            "ConfigMap": core.list_config_map_for_all_namespaces,
            "Secret": core.list_secret_for_all_namespaces,
            "Deployment": apps.list_deployment_for_all_namespaces,
        }
        return {
            kind: {item.metadata.name for item in listed(label_selector=INSTANCE).items}
            for kind, listed in lists.items()
        }


def stage_spec(control_plane, rank):
    with control_plane.client() as client:
        core = kubernetes.client.CoreV1Api(client)
        data = core.read_namespaced_config_map(f"apart-rank-{rank}", "apart-splits").data
    return json.loads(data["stage.json"])


def pod_node(control_plane, name):
    with control_plane.client() as client:
        core = kubernetes.client.CoreV1Api(client)
        return core.read_namespaced_pod(name, "apart-splits").spec.node_name


def test_up_and_destroy_over_two_clusters(control_plane, away, tmp_path):
    control_plane.add_nodes([Node("here")])
    away.add_nodes([Node("there")])
    clusters = {
        "home": {"kubeconfig": str(control_plane.kubeconfig)},
        "away": {"kubeconfig": str(away.kubeconfig)},
    }
    mapping = stack_mapping(
        control_plane, "apart", clusters=clusters, per_rank_params=RANKS, multi_cluster=True
    )
    workspace = PulumiWorkspace(
        tmp_path / "workspace",
        write_stack(tmp_path, mapping),
        plugins=plugin_folders(tmp_path / "plugins"),
    )
    workspace.set("splitstack:group_token", TOKEN, secret=True)
    up = workspace.up()
    assert up.succeeded, up.output

    here, there = found(control_plane), found(away)
    assert "apart-rank-0" in here["Pod"]
    assert there["Pod"] == {"apart-rank-1"}
    assert pod_node(control_plane, "apart-rank-0") == "here"
    assert pod_node(away, "apart-rank-1") == "there"
    assert "apart-rank-master" in here["Service"]
    assert here["Namespace"] == {"apart-splits", "apart-blocks", "apart-public"}
    assert there["Namespace"] == {"apart-splits"}
    assert len(here["Deployment"]) == 2
    assert there["Deployment"] == set()

    for rank, cluster in enumerate((control_plane, away)):
        spec = stage_spec(cluster, rank)
        assert spec["master_host"] == "203.0.113.1"
        assert spec["advertise_address"] == f"203.0.113.{rank + 1}"

    assert workspace.up().changes == {}
    assert workspace.destroy().succeeded
    for cluster in (control_plane, away):
        assert not any(found(cluster).values())
