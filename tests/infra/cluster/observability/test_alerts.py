"""The alert rules, checked and tried by Prometheus' own tool."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from infra.cluster.observability.alert_rules import alert_rules
from tests.infra.deployments import parsed
from tests.programs import needs, program

pytestmark = needs("promtool")
CASES = Path(__file__).with_name("alerts_test.yaml")


@pytest.fixture
def rules(tmp_path: Path) -> str:
    """The file of the stack `s`."""
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(alert_rules(parsed(deployment_name="s"))))
    return str(path)


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(program("promtool")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_promtool_accepts_the_rules(rules: str) -> None:
    done = promtool("check", "rules", rules)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_only_then(rules: str, tmp_path: Path) -> None:
    cases = tmp_path / "cases.yaml"
    cases.write_text(CASES.read_text().replace("RULES", rules))
    done = promtool("test", "rules", str(cases))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    [group] = alert_rules(parsed())["groups"]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_two_stacks_have_no_rule_in_common() -> None:
    [one], [other] = (alert_rules(parsed(deployment_name=name))["groups"] for name in "st")
    assert one["name"] != other["name"]
    assert not {rule["expr"] for rule in one["rules"]} & {rule["expr"] for rule in other["rules"]}
    assert {rule["labels"]["stack"] for rule in one["rules"]} == {"s"}


def test_what_a_stack_has_not_is_not_missed() -> None:
    [group] = alert_rules(parsed(proxy_blocks=[], inference_server={"enabled": False}))["groups"]
    absent = [rule["alert"] for rule in group["rules"] if rule["alert"].endswith("Absent")]
    assert absent == ["SplitstackMasterAbsent"]
