"""A kubeconfig that is an output of another stack, which made the cluster: the real engine with two
stacks of two projects in one backend."""

from __future__ import annotations

import json

import pytest
import yaml
from kubernetes import client

from infra.inspection.doctor import examine
from infra.stack.file import parse_deployment
from tests.cluster.applied_stack import stack_mapping, write_stack
from tests.cluster.nodes import Node
from tests.cluster.plugin_choice import plugin_folders
from tests.cluster.pulumi_workspace import PulumiWorkspace
from tests.infra.recorded_program import TOKEN
from tests.programs import CONTROL_PLANE, PULUMI, needs

pytestmark = [needs(*CONTROL_PLANE, *PULUMI), pytest.mark.slow]

MAKES_CLUSTERS = "organization/clusters/test"


def makes_clusters(folder, text):
    """A project whose one stack has a kubeconfig among its outputs, a secret."""
    (folder / "program").mkdir(parents=True)
    runtime = {"name": "python", "options": {"virtualenv": ".venv"}}
    project = {"name": "clusters", "main": "program", "runtime": runtime}
    (folder / "Pulumi.yaml").write_text(yaml.safe_dump(project))
    (folder / "Pulumi.test.yaml").write_text("{}")
    program = f"import pulumi\npulumi.export('admin', pulumi.Output.secret({text!r}))\n"
    (folder / "program" / "__main__.py").write_text(program)
    return folder


def test_the_cluster_of_another_stack(control_plane, tmp_path, monkeypatch):
    control_plane.add_nodes([Node("elsewhere-1")])
    project = makes_clusters(tmp_path / "project", control_plane.kubeconfig.read_text())
    maker = PulumiWorkspace(tmp_path / "maker", project / "Pulumi.test.yaml", project=project)
    mapping = stack_mapping(control_plane, "elsewhere", nnodes=1)
    mapping["clusters"] = {"home": {"kubeconfig_stack": MAKES_CLUSTERS}}
    ours = PulumiWorkspace(
        tmp_path / "ours",
        write_stack(tmp_path, mapping),
        plugins=plugin_folders(tmp_path / "plugins"),
        backend=maker.backend,
    )
    ours.set("splitstack:group_token", TOKEN, secret=True)
    refused = ours.preview()
    assert "clusters.home.kubeconfig_stack" in refused.errors
    assert f"stack {MAKES_CLUSTERS} " in refused.errors
    assert maker.up().succeeded
    refused = ours.preview()
    assert (
        f"there is no output kubeconfig of stack {MAKES_CLUSTERS}; it has: admin" in refused.errors
    )
    ours.set("splitstack:deployment.clusters.home.kubeconfig_output", "admin")
    up = ours.up()
    assert up.succeeded, up.output
    with control_plane.client() as api:
        pods = client.CoreV1Api(api).list_namespaced_pod("elsewhere-splits").items
        assert "elsewhere-rank-0" in {pod.metadata.name for pod in pods}
    assert "client-key-data" not in json.dumps(ours.state())
    # What asks without an engine asks the command.
    for name, value in ours.environment.items():
        monkeypatch.setenv(name, value)
    mapping["clusters"]["home"]["kubeconfig_output"] = "admin"
    found = [item.text for item in examine(parse_deployment(mapping)) if "cluster" in item.subject]
    assert any(f"answers at {control_plane.url}" in text for text in found)
    assert ours.destroy().succeeded
