"""Deployments for tests to change: a small one, and those of stacks/."""

from pathlib import Path

import pytest

from infra.plan.stack_plan import StackPlan, plan_stack
from infra.stack.config import DeploymentConfig
from infra.stack.faults import StackConfigError
from infra.stack.file import load_stack_file, parse_deployment

STACKS = Path(__file__).parents[2] / "stacks"
LOCAL, PHI = STACKS / "Pulumi.local.yaml", STACKS / "Pulumi.phi-128k-2.yaml"

MINIMAL = {
    "deployment_name": "small",
    "nnodes": 2,
    "common_params": {"model_name": "some/model"},
    "proxy_blocks": [{"block_id": "block"}],
}


def parsed(**changes: object) -> DeploymentConfig:
    return parse_deployment(MINIMAL | changes)


def fault_lines(**changes: object) -> list[str]:
    with pytest.raises(StackConfigError) as raised:
        parsed(**changes)
    return [str(fault) for fault in raised.value.faults]


def planned(path: Path, *sets: str) -> StackPlan:
    return plan_stack(load_stack_file(path, sets).deployment)
