"""The workflows of .github: judged, since nothing here can run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.stack.file import parse_deployment
from infra.stack.image_names import image_names
from tests.infra.program_stacks import stack
from tests.programs import needs, program

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
_PINNED = re.compile(r"uses: (\./\S+( # zizmor: .*)?|[\w.-]+/[\w./-]+@[0-9a-f]{40} # v[0-9.]+)")


def workflow(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
    return found


@needs("actionlint")
def test_actionlint_finds_nothing() -> None:
    # Without the programs that it would ask beside, where they happen to be there.
    command = [str(program("actionlint")), "-shellcheck=", "-pyflakes=", *map(str, WORKFLOWS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_zizmor_finds_nothing() -> None:
    zizmor = str(Path(sys.executable).with_name("zizmor"))
    command = [zizmor, "--offline", "--no-progress", *map(str, WORKFLOWS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_named_by_commit_and_rights_by_job(path: Path) -> None:
    text = path.read_text("utf-8")
    uses = [line.strip().removeprefix("- ") for line in text.splitlines() if "uses:" in line]
    assert [line for line in uses if not _PINNED.fullmatch(line)] == []
    assert workflow(path.name)["permissions"] == {}
    assert all("permissions" in job for job in workflow(path.name)["jobs"].values())


def test_a_release_has_every_tier_by_the_name_that_a_stack_file_gives_it(tmp_path: Path) -> None:
    rows = workflow("release.yaml")["jobs"]["image"]["strategy"]["matrix"]["include"]
    released = {(row["folder"], row["image"]) for row in rows}
    runner = "ghcr.io/somebody/splitstack-runner:1"
    common = stack(tmp_path)["common_params"] | {"image": runner}
    built = {"builder": "docker", "build_arguments": {"DEMO_MODEL": common["model_name"]}}
    names = image_names(parse_deployment(stack(tmp_path, images=built, common_params=common)))
    assert released == {
        (tier, name.rpartition("/")[2].partition(":")[0]) for tier, name in names.items()
    }
    assert all((ROOT / folder / "Dockerfile").is_file() for folder, _ in released)


def test_ci_does_what_is_done_anywhere() -> None:
    steps = workflow("ci.yaml")["jobs"]["check"]["steps"]
    assert steps[-1]["run"] == ".ci/run"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
