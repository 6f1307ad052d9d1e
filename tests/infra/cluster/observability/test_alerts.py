"""The alert rules, checked and tried by Prometheus' own tool."""

from __future__ import annotations

import subprocess
from importlib.resources import files
from pathlib import Path

import yaml

from infra.cluster.observability.component import ALERTS_FILE, read
from tests.programs import needs, program

pytestmark = needs("promtool")
RULES = str(files("infra.cluster.observability").joinpath(ALERTS_FILE))
CASES = Path(__file__).with_name("alerts_test.yaml")


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(program("promtool")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_promtool_accepts_the_rules() -> None:
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    cases = tmp_path / "cases.yaml"
    cases.write_text(CASES.read_text().replace("RULES", RULES))
    done = promtool("test", "rules", str(cases))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    [group] = yaml.safe_load(read(ALERTS_FILE))["groups"]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"].keys() == {"summary", "description"}
