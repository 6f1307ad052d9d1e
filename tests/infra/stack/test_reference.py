"""The checked-in schema and the table of keys follow the model."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from infra.stack.reference import reference_table, schema, schema_text

ROOT = Path(__file__).parents[3]
STACK_FILES = sorted((ROOT / "stacks").glob("Pulumi.*.yaml"))


def test_the_checked_in_schema_is_the_generated_one():
    checked_in = (ROOT / "infra" / "stack.schema.json").read_text("utf-8")
    assert checked_in == schema_text(), (
        "run: python -m infra.stack.reference --schema > infra/stack.schema.json"
    )
    jsonschema.Draft202012Validator.check_schema(json.loads(checked_in))


@pytest.mark.parametrize("path", STACK_FILES, ids=lambda path: path.name)
def test_stack_files_follow_the_schema(path):
    jsonschema.validate(yaml.safe_load(path.read_text("utf-8")), schema())


def test_both_stack_files_are_there():
    assert {"Pulumi.local.yaml", "Pulumi.phi-128k-2.yaml"} <= {path.name for path in STACK_FILES}


@pytest.mark.parametrize(
    "change", [{"nnodes": "many"}, {"unknown": 1}, {"gpu_pinning": "some"}, {"proxy_blocks": [{}]}]
)
def test_the_schema_refuses_what_the_model_refuses(change):
    document = yaml.safe_load((ROOT / "stacks" / "Pulumi.local.yaml").read_text("utf-8"))
    document["config"]["splitstack:deployment"] |= change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema())


def test_every_key_is_documented():
    table = reference_table()
    documented = (ROOT / "docs" / "stack-file.md").read_text("utf-8")
    assert documented.endswith(table), "run: python -m infra.stack.reference"
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    assert len(rows) > 60
    for row in rows:
        assert row[-1].removesuffix(" |"), f"{row[0]} has no meaning"
