"""The policy pack in the real engine: what it refuses never gets beyond the preview."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from infra.policy.resources import Resource
from tests.cluster.pulumi_workspace import PulumiRun, PulumiWorkspace
from tests.infra.policy.objects import GOOD_POD, on_nodes, pod, with_container, with_environment
from tests.programs import PULUMI, needs

pytestmark = needs(*PULUMI)

PACK = Path(__file__).parents[2] / "infra" / "policy"
# The language host that can be had as a Go module does not start packs: with a runtime name of its
# own the engine starts this script for it, which is all that the host would do.
RUNTIME = "tested"
ANALYZER = f'#!/bin/sh\nexec {sys.executable} -u -m pulumi.policy "$1" "$2"\n'
PROJECT = {"name": "judged", "runtime": "python", "main": "program", "stackConfigDir": "stacks"}
# The engine shows a pack components and objects alike, and components need no provider plugin.
PROGRAM = """
import json, pathlib, pulumi

for item in json.loads(pathlib.Path(__file__).with_name("objects.json").read_text()):
    made = pulumi.ComponentResource(item["kind"], item["name"], item["properties"])
    made.register_outputs(item["properties"])
"""
SELECTOR = {"app.kubernetes.io/component": "rank"}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    settings = yaml.safe_load((PACK / "PulumiPolicy.yaml").read_text())
    assert settings["runtime"]["name"] == "python"
    settings["runtime"] = {"name": RUNTIME}
    (folder / "PulumiPolicy.yaml").write_text(yaml.safe_dump(settings))
    shutil.copy(PACK / "__main__.py", folder)
    return folder


def previewed(folder: Path, pack: Path, resources: Iterable[Resource]) -> PulumiRun:
    """A preview, under the pack, of a stack with these resources."""
    program, programs = folder / "project" / "program", folder / "programs"
    program.mkdir(parents=True)
    programs.mkdir()
    analyzer = programs / f"pulumi-analyzer-policy-{RUNTIME}"
    analyzer.write_text(ANALYZER)
    analyzer.chmod(0o755)
    (program / "__main__.py").write_text(PROGRAM)
    objects = [
        {"kind": item.kind, "name": item.name, "properties": item.properties} for item in resources
    ]
    (program / "objects.json").write_text(json.dumps(objects))
    (folder / "project" / "Pulumi.yaml").write_text(yaml.safe_dump(PROJECT))
    stack_file = folder / "Pulumi.small.yaml"
    stack_file.write_text("config: {}\n")
    workspace = PulumiWorkspace(
        folder / "workspace", stack_file, plugins=[programs], project=folder / "project"
    )
    return workspace.preview("--policy-pack", str(pack))


def violations(run: PulumiRun) -> set[tuple[str, str]]:
    """(policy, name of the resource) of everything that was refused."""
    found = [event["policyEvent"] for event in run.events if "policyEvent" in event]
    return {
        (item["policyName"], item.get("resourceUrn", "").rpartition("::")[2])
        for item in found
        if item["enforcementLevel"] == "mandatory"
    }


def named(name: str, resource: Resource) -> Resource:
    return Resource(resource.kind, name, resource.properties)


def holding(name: str, device: str) -> Resource:
    variables = [{"name": "NVIDIA_VISIBLE_DEVICES", "value": device}]
    container = GOOD_POD["spec"]["containers"][0] | {"env": variables}
    return pod(name, containers=[container], affinity=on_nodes("n1"))


def test_each_bad_object_is_refused_by_its_rule(tmp_path, pack):
    service = {"metadata": {"name": "service"}, "spec": {"selector": SELECTOR}}
    bad = {
        "immutable-images": with_container(image="registry/runner:latest"),
        "requests-and-limits": with_container(resources={"requests": {"cpu": "1"}}),
        "no-unused-token": pod(automountServiceAccountToken=None),
        "no-plain-secret": with_environment(HF_TOKEN="hf_of_the_test"),
        "ranks-on-their-nodes": pod(affinity=None),
        "own-instance-only": Resource("kubernetes:core/v1:Service", "service", service),
    }
    resources = [named(f"breaks-{rule}", resource) for rule, resource in bad.items()]
    run = previewed(tmp_path, pack, [pod("good"), *resources])
    assert not run.succeeded
    # All of them hold one device, which the next test is about.
    found = {item for item in violations(run) if item[0] != "one-rank-per-device"}
    assert found == {(rule, f"breaks-{rule}") for rule in bad}
    assert "hf_of_the_test" not in run.output
    assert "image 'registry/runner:latest' is not pinned" in run.output


def test_a_device_with_two_holders_is_refused(tmp_path, pack):
    ranks = [holding("rank-0", "0"), holding("rank-1", "1"), holding("rank-2", "1")]
    run = previewed(tmp_path, pack, ranks)
    assert not run.succeeded
    assert violations(run) == {("one-rank-per-device", "rank-2")}
    assert "Pod rank-2 would hold device 1 of node n1, which Pod rank-1 holds" in run.output


def test_a_good_stack_is_let_through(tmp_path, pack):
    run = previewed(tmp_path, pack, [holding("rank-0", "0"), holding("rank-1", "1")])
    assert run.succeeded, run.output
    assert violations(run) == set()
    assert run.counts["create"] == 3
