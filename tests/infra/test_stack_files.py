"""Each stack file that one begins with: planned, rendered, and saying for whom it is.

The folder's files are found, so that a new one is held to this at once.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.gallery import (
    CLUSTER_STACK_FILES,
    STACK_FILES,
    STACKS,
    deployment_of,
    hub,
    rendered,
)
from tests.infra.policy.violations import violations_of

LONGEST_HEADER = 8
NOT_IN_CLUSTERS = [path.name for path in STACK_FILES if path not in CLUSTER_STACK_FILES]

every_file = pytest.mark.parametrize("path", STACK_FILES, ids=lambda path: path.name)
every_file_of_clusters = pytest.mark.parametrize(
    "path", CLUSTER_STACK_FILES, ids=lambda path: path.name
)


@every_file
def test_it_says_for_whom_it_is_and_what_to_run(path: Path) -> None:
    header = path.read_text("utf-8").partition("config:")[0].splitlines()
    assert 2 <= len(header) <= LONGEST_HEADER
    assert all(line.startswith("# ") for line in header)
    assert re.search(r"\b(make|splitstack|pulumi) [a-z]", "\n".join(header))


def test_the_table_has_every_file() -> None:
    page = (STACKS / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| \[(Pulumi\.[\w-]+\.yaml)\]", page, re.MULTILINE)
    assert sorted(listed) == [path.name for path in STACK_FILES]


@every_file
def test_it_is_planned(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infra.cli", "plan", "-s", str(path), "--json"]
    with hub(tmp_path, path):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    plan, deployment = json.loads(done.stdout), deployment_of(path)
    assert len(plan["ranks"]) == deployment["nnodes"]
    if any("device_memory" in params for params in deployment.get("per_rank_params", [])):
        assert all(row["requests"] > 0 for row in plan["requests_that_fit"])


@every_file_of_clusters
def test_it_is_rendered_and_no_policy_refuses_it(path: Path, tmp_path: Path) -> None:
    program = rendered(path, tmp_path)
    assert len(program.outputs["ranks"]) == deployment_of(path)["nnodes"]
    assert violations_of(program) == []


def test_one_file_is_for_one_machine() -> None:
    assert NOT_IN_CLUSTERS == ["Pulumi.local.yaml"]
