"""What observability declares, from the recorded program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.cluster.observability.alert_rules import ALERTS_FILE, alert_rules
from infra.cluster.observability.component import DASHBOARD_FILE, dashboard, read
from tests.infra.deployments import fault_lines, parsed
from tests.infra.program_stacks import FULL, SECRETS, stack
from tests.infra.recorded_program import TOKEN, Program, run_program


def program(folder: Path, **observability: Any) -> Program:
    mapping = stack(folder, **FULL | {"observability": observability})
    return run_program(mapping, secrets={"group_token": TOKEN, **SECRETS}, preview=True)


def made(found: Program, part: str) -> dict[str, dict[str, Any]]:
    return {
        item.metadata_name: item.manifest for item in found.objects if part in item.metadata_name
    }


def test_nothing_is_declared_unless_it_is_enabled(tmp_path: Path) -> None:
    found = program(tmp_path)
    assert not made(found, "-metrics-") | made(found, "-dashboard") | made(found, "-alerts")


def test_the_dashboard_bears_the_label_that_grafana_looks_for(tmp_path: Path) -> None:
    found = made(program(tmp_path, enabled=True, dashboard_label="found"), "-dashboard")
    manifest = found["small-dashboard"]
    assert manifest["metadata"]["labels"]["found"] == "1"
    shown = json.loads(manifest["data"]["small-dashboard.json"])
    assert shown["panels"] == json.loads(read(DASHBOARD_FILE))["panels"]
    assert shown["title"] == "Splitstack small"


def test_dashboards_of_two_stacks_share_no_id() -> None:
    ids = {json.loads(dashboard(name))["uid"] for name in ("small", "other")}
    assert len(ids) == 2
    assert max(map(len, ids)) <= 40  # Grafana's limit


def test_annotated_services_lead_to_ports_that_pods_have(tmp_path: Path) -> None:
    found = program(tmp_path, enabled=True)
    services = made(found, "-metrics-")
    names = {"master", "stages", "block-0", "block-1", "server"}
    assert set(services) == {f"small-metrics-{name}" for name in names}
    for name, manifest in services.items():
        annotations = manifest["metadata"]["annotations"]
        port = manifest["spec"]["ports"][0]["port"]
        assert annotations["prometheus.io/scrape"] == "true"
        assert annotations["prometheus.io/port"] == str(port)
        assert manifest["spec"]["clusterIP"] == "None"
        assert pods_with(found, manifest, port), name


def pods_with(found: Program, service: dict[str, Any], port: int) -> list[str]:
    """The workloads whose pods the Service picks; each of them must have the port."""
    chosen = service["spec"]["selector"].items()
    picked = []
    for item, spec in found.pods():
        template = item.manifest["spec"].get("template", item.manifest)["metadata"]
        same_place = item.manifest["metadata"]["namespace"] == service["metadata"]["namespace"]
        if same_place and chosen <= template["labels"].items():
            ports = {one["containerPort"] for part in spec["containers"] for one in part["ports"]}
            assert port in ports
            picked.append(item.name)
    return picked


def test_with_the_operator_its_own_kinds_are_declared(tmp_path: Path) -> None:
    found = program(tmp_path, enabled=True, prometheus_operator=True)
    kinds = {name: manifest["kind"] for name, manifest in made(found, "-metrics-").items()}
    assert set(kinds.values()) == {"PodMonitor"}
    rule = made(found, "-alerts")["small-alerts"]
    assert rule["kind"] == "PrometheusRule"
    assert rule["spec"] == alert_rules(parsed())
    # What the rules tell stacks and tiers apart by.
    for manifest in made(found, "-metrics-").values():
        targets = manifest["spec"]["podTargetLabels"]
        assert targets == ["app.kubernetes.io/instance", "app.kubernetes.io/component"]


def test_the_operators_kinds_bear_the_labels_that_it_selects_by(tmp_path: Path) -> None:
    own = {"release": "prometheus"}
    found = program(tmp_path, enabled=True, prometheus_operator=True, operator_labels=own)
    kinds = made(found, "-metrics-") | made(found, "-alerts")
    for labels in (kind["metadata"]["labels"] for kind in kinds.values()):
        assert labels["release"] == "prometheus"
        assert labels["app.kubernetes.io/instance"] == "small"


def test_labels_that_nobody_selects_by() -> None:
    (line,) = fault_lines(observability={"operator_labels": {"release": "prometheus"}})
    assert "needs observability.prometheus_operator: true" in line
    shadow = {"prometheus_operator": True, "operator_labels": {"app.kubernetes.io/name": "mine"}}
    (line,) = fault_lines(observability=shadow)
    assert line.startswith("observability.operator_labels.app.kubernetes.io/name = 'mine': is this")


@pytest.mark.parametrize("name", [DASHBOARD_FILE, ALERTS_FILE])
def test_the_files_name_no_machine(name: str) -> None:
    assert "localhost" not in read(name)
