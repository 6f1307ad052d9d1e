"""The workspace with a program that needs no plugin."""

from __future__ import annotations

import pytest
import yaml

from tests.cluster.pulumi_workspace import PulumiWorkspace
from tests.programs import PULUMI, needs

pytestmark = needs(*PULUMI)

PROJECT = {
    "name": "kept",
    "runtime": "python",
    "main": "program",
    "stackConfigDir": "stacks",
}
# A component with an output that depends on the stack's config.
PROGRAM = """
import pulumi

settings = pulumi.Config("kept")
kept = settings.require_object("kept")
if kept["value"] == "bad":
    raise pulumi.RunError("kept.value: 'bad' is refused")
pulumi.log.info(f"kept is {kept['value']}")
pulumi.ComponentResource("kept:index:Kept", kept["name"])
pulumi.export("value", kept["value"])
pulumi.export("secret", settings.get_secret("word"))
"""


@pytest.fixture
def workspace(tmp_path):
    project = tmp_path / "project"
    (project / "program").mkdir(parents=True)
    (project / "program" / "__main__.py").write_text(PROGRAM)
    (project / "Pulumi.yaml").write_text(yaml.safe_dump(PROJECT))
    stack_file = tmp_path / "Pulumi.small.yaml"
    stack_file.write_text("config:\n  kept:kept: {value: first, name: one}\n")
    return PulumiWorkspace(tmp_path / "workspace", stack_file, project=project)


def test_operations_outputs_and_messages_of_a_stack(workspace):
    preview = workspace.preview()
    assert preview.succeeded, preview.output
    assert preview.changes == {"Stack::kept-small": "create", "Kept::one": "create"}
    assert "kept is first" in preview.messages

    assert workspace.up().counts == {"create": 2}
    assert workspace.outputs() == {"value": "first"}
    assert workspace.up().changes == {}

    workspace.set("kept:kept.name", "two")
    workspace.set("kept:word", "-hidden", secret=True)
    assert "hidden" not in workspace.stack_file.read_text()
    changed = workspace.up()
    assert changed.changes == {"Kept::two": "create", "Kept::one": "delete"}
    assert workspace.outputs()["secret"] == "-hidden"
    assert {item["type"] for item in workspace.state()["resources"]} >= {"kept:index:Kept"}

    workspace.set("kept:kept.value", "bad")
    failed = workspace.up()
    assert not failed.succeeded
    assert "kept.value: 'bad' is refused" in failed.errors

    assert workspace.destroy().counts == {"delete": 2}
    assert "resources" not in workspace.state()
