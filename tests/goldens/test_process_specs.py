"""The spec file of every process and its hash, byte for byte.

A rank that was started with other bytes has another hash, and the master refuses it: processes of
two versions of the code meet while a stack is updated. How a stack's processes are started on one
machine lies beside them. The files that pods mount are among the Pulumi objects.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from contract.specs import (
    BlockSpec,
    GroupSpec,
    InferenceServerSpec,
    MasterSpec,
    ProxySpec,
    RankPart,
    StageSpec,
    render,
    spec_hash,
)
from infra.local.fit import addresses, port_count
from infra.local.processes import define_processes
from infra.local.state import StateFolder
from infra.plan.stack_plan import plan_stack
from infra.stack.file import load_stack_file, parse_deployment
from tests.goldens.recorded_file import check_recorded, replaced
from tests.infra.program_stacks import matrix

REPOSITORY = Path(__file__).parents[2]
FIRST_PORT = 20_000
STACKS = ("1 rank", "4 ranks", "two clusters", "everything on", "everything off")
SIZES = [{"rank": rank, "cpu": 2, "memory": "3Gi"} for rank in range(2)]


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPLITSTACK_API_KEYS_FILE", raising=False)
    monkeypatch.chdir(REPOSITORY)


def test_defaults() -> None:
    specs = (
        GroupSpec("d", "org/model", (RankPart((0, 5)), RankPart((5, 12)))),
        MasterSpec("d"),
        StageSpec("d", 1),
        ProxySpec("one", "d", "http://master:8080"),
        InferenceServerSpec("d", (BlockSpec("one", "http://one:8082"),)),
    )
    found = {type(spec).__name__: [spec_hash(spec), *render(spec).split("\n")] for spec in specs}
    check_recorded("specs-defaults", found)


@pytest.mark.parametrize("name", [*STACKS, "local"])
def test_the_processes_of_a_stack_on_one_machine(name: str, tmp_path: Path) -> None:
    if name == "local":
        file = REPOSITORY / "stacks" / "Pulumi.local.yaml"
        deployment = load_stack_file(file, [f"per_rank_params={json.dumps(SIZES)}"]).deployment
    else:
        deployment = parse_deployment(matrix(tmp_path)[name])
    folder = StateFolder(deployment.deployment_name, tmp_path / "state")
    folder.path.mkdir(parents=True)
    ports = range(FIRST_PORT, FIRST_PORT + port_count(deployment))
    places = addresses(deployment, ports)
    plan = plan_stack(deployment)
    words = {str(tmp_path): "<folder>", sys.executable: "<python>"}
    wanted = define_processes(folder, deployment, plan, places, "c0ffee")
    rollout = wanted.rollout
    assert rollout is not None
    files = {rollout.wanted: rollout.text}
    for item in wanted.definitions:
        files |= item.files
    processes = [
        {
            "name": item.name,
            "tier": item.tier,
            "command": list(item.command),
            "environment": dict(item.environment),
            "url": item.url,
            "startup_s": item.startup_s,
            "log": str(item.log),
        }
        for item in wanted.definitions
    ]
    found: dict[str, Any] = {
        "processes": processes,
        "rollout": list(rollout.command),
        "specs": {Path(path).stem: files[path].split("\n") for path in sorted(files)},
    }
    check_recorded(f"specs-local-{name.replace(' ', '-')}", replaced(found, words))
