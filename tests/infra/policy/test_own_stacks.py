"""What the program itself declares passes the pack, whatever the stack file asks for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infra.policy.__main__ import RESOURCE_RULES, STACK_RULES
from tests.infra.policy.violations import violations_of
from tests.infra.program_stacks import NAMES, SECRETS, matrix
from tests.infra.recorded_program import TOKEN, run_program


@pytest.mark.parametrize("name", NAMES)
def test_no_stack_of_ours_is_refused(tmp_path, name):
    secrets = {"group_token": TOKEN, **SECRETS}
    found = run_program(matrix(tmp_path)[name], secrets=secrets)
    assert violations_of(found) == []


def test_every_policy_is_documented():
    page = (Path(__file__).parents[3] / "docs" / "policy-pack.md").read_text("utf-8")
    documented = re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)
    assert documented == [*RESOURCE_RULES, *STACK_RULES]
