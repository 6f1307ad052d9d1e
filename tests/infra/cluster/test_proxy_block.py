"""What the cluster gets for a proxy block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contract.specs import ProxySpec, load
from tests.infra.program_stacks import DIGEST, SECRETS, stack
from tests.infra.recorded_program import TOKEN, Program, changed_objects, run_program

NAME = "small-proxy-block"
VALKEY = {"mode": "valkey", "image": f"registry.test/valkey@{DIGEST}"}
WITH_PASSWORD = {"group_token": TOKEN, **SECRETS}


def program(folder: Path, block: dict[str, Any] | None = None, **changes: Any) -> Program:
    blocks = [{"block_id": "block", **(block or {})}]
    return run_program(stack(folder, proxy_blocks=blocks, **changes), secrets=WITH_PASSWORD)


def deployment_of(found: Program, name: str = NAME) -> dict[str, Any]:
    return found.one("Deployment", name).manifest["spec"]


def spec_of(found: Program, folder: Path) -> ProxySpec:
    """The spec file that the pods mount, read as the proxy block reads it."""
    path = folder / "proxy.json"
    path.write_text(found.one("ConfigMap", NAME).manifest["data"]["proxy.json"], "utf-8")
    return load(path, ProxySpec)


def test_the_pod_starts_the_proxy_block_as_on_one_machine(tmp_path):
    found = program(tmp_path)
    pod = deployment_of(found)["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == [
        "python", "-m", "proxy_block", "--spec", "/etc/splitstack/proxy.json",
        "--management-key-file", "/run/secrets/splitstack-management/management_key",
    ]  # fmt: skip
    assert container["image"].startswith("registry.test/proxy-block@sha256:")
    assert {item["name"]: item["mountPath"] for item in container["volumeMounts"]} == {
        "spec": "/etc/splitstack",
        "management": "/run/secrets/splitstack-management",
        "histories": "/var/lib/splitstack",
        "temporary": "/tmp",
    }
    spec = spec_of(found, tmp_path)
    assert spec.upstream_url == "http://small-master-api.splits.svc:8080"
    assert spec.sessions.path == "/var/lib/splitstack/sessions.sqlite3"
    assert (spec.sessions.url, spec.port) == ("", 8082)


def test_it_may_drain_as_long_as_a_request_may_take(tmp_path):
    found = program(tmp_path)  # request_deadline_s: 100
    pod = deployment_of(found)["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 115
    (container,) = pod["containers"]
    # Services forget it first: what drains refuses new requests at once.
    assert container["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}}
    _, _, delete = found.one("Deployment", NAME).timeouts
    assert delete == f"{300 + 115}s"


def test_its_probes_ask_for_itself_only(tmp_path):
    (container,) = deployment_of(program(tmp_path))["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz?self"
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["livenessProbe"]["terminationGracePeriodSeconds"] == 1
    assert container["resources"]["limits"] == {"cpu": "500m", "memory": str(512 * 2**20)}
    assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_service_says_which_block_it_is(tmp_path):
    block = {"component": "model.other:2", "labels": {"team": "a", "size": "3"}, "port": 9000}
    service = program(tmp_path, block).one("Service", NAME).manifest
    annotations = service["metadata"]["annotations"]
    assert annotations["splitstack.dev/block-id"] == "block"
    assert annotations["splitstack.dev/component"] == "model.other:2"
    assert json.loads(annotations["splitstack.dev/labels"]) == {"team": "a", "size": "3"}
    assert annotations["pulumi.com/skipAwait"] == "true"
    assert service["metadata"]["labels"]["app.kubernetes.io/component"] == "proxy-block"
    assert service["metadata"]["namespace"] == "blocks"
    assert service["spec"]["ports"] == [{"name": "http", "port": 9000, "targetPort": "http"}]


def test_two_blocks_never_share_a_pod(tmp_path):
    blocks = [{"block_id": "first"}, {"block_id": "second"}]
    found = run_program(stack(tmp_path, proxy_blocks=blocks))
    selectors = []
    for name in ("first", "second"):
        selector = found.one("Service", f"small-proxy-{name}").manifest["spec"]["selector"]
        workload = deployment_of(found, f"small-proxy-{name}")
        assert workload["selector"]["matchLabels"] == selector
        assert selector.items() <= workload["template"]["metadata"]["labels"].items()
        selectors.append(selector)
    assert selectors[0] != selectors[1]
    assert {selector["app.kubernetes.io/instance"] for selector in selectors} == {"small"}


@pytest.mark.parametrize(
    ("instances", "replicas", "scaled"),
    [((1, 1), 1, False), ((3, 3), 3, False), ((2, 5), None, True)],
)
def test_instances_are_fixed_or_an_autoscalers(tmp_path, instances, replicas, scaled):
    least, most = instances
    block = {
        "min_instances": least,
        "max_instances": most,
        "autoscaler": {"cpu_percent": 55, "scale_up_window_s": 10, "scale_down_window_s": 600},
    }
    found = program(tmp_path, block, session_store=VALKEY)
    assert deployment_of(found).get("replicas") == replicas
    scalers = found.of_kind("HorizontalPodAutoscaler")
    assert len(scalers) == scaled
    for scaler in scalers:
        spec = scaler.manifest["spec"]
        assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 5)
        assert spec["scaleTargetRef"]["name"] == NAME
        assert spec["metrics"][0]["resource"]["target"]["averageUtilization"] == 55
        assert spec["behavior"]["scaleUp"]["stabilizationWindowSeconds"] == 10
        assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 600
    budget = found.one("PodDisruptionBudget", NAME)
    assert budget.manifest["spec"]["maxUnavailable"] == 1
    assert budget.manifest["spec"]["selector"] == deployment_of(found)["selector"]


def test_histories_in_the_pod_are_replaced_without_a_gap(tmp_path):
    found = program(tmp_path)
    strategy = deployment_of(found)["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert found.of_kind("PersistentVolumeClaim") == []


def test_histories_on_a_claim_have_one_writer_at_a_time(tmp_path):
    store = {"mode": "sqlite", "size": "2Gi", "storage_class": "fast"}
    found = program(tmp_path, session_store=store)
    assert deployment_of(found)["strategy"] == {"type": "Recreate"}
    claim = found.one("PersistentVolumeClaim", NAME)
    assert claim.manifest["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": str(2 * 2**30)}},
    }
    assert claim.manifest["metadata"]["annotations"] == {"pulumi.com/skipAwait": "true"}
    volumes = deployment_of(found)["template"]["spec"]["volumes"]
    assert {"name": "histories", "persistentVolumeClaim": {"claimName": NAME}} in volumes
    assert claim.urn in found.one("Deployment", NAME).depends_on


@pytest.mark.parametrize(
    ("store", "url"),
    [
        (VALKEY, "redis://small-session-store.blocks.svc:6379/0"),
        ({"mode": "url", "url": "rediss://store.test:7000/1"}, "rediss://store.test:7000/1"),
    ],
)
def test_a_shared_store_is_asked_with_its_password(tmp_path, store, url):
    found = program(tmp_path, session_store=store)
    assert spec_of(found, tmp_path).sessions.url == url
    pod = deployment_of(found)["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][-2:] == [
        "--session-password-file", "/run/secrets/splitstack/session_store_password",
    ]  # fmt: skip
    secret = found.one("Secret", "small-session-store")
    assert secret.manifest["stringData"]["session_store_password"] == "password-of-the-test"
    assert {item.get("secret", {}).get("secretName") for item in pod["volumes"]} >= {
        "small-session-store"
    }
    assert "histories" not in {item["name"] for item in pod["volumes"]}
    assert secret.urn in found.one("Deployment", NAME).depends_on
    assert "password-of-the-test" not in json.dumps(
        [item.manifest for item in found.objects if item.short_kind != "Secret"]
    )


def test_a_shared_store_without_a_password_is_asked_without(tmp_path):
    found = run_program(stack(tmp_path, session_store=VALKEY))
    (container,) = deployment_of(found)["template"]["spec"]["containers"]
    assert "--session-password-file" not in container["command"]
    assert not [item for item in found.of_kind("Secret") if "session" in item.name]


def test_an_edit_of_the_system_message_touches_the_block_only(tmp_path):
    before = program(tmp_path)
    after = program(tmp_path, {"system_message": "Be brief."})
    assert changed_objects(before, after) == {("ConfigMap", NAME), ("Deployment", NAME)}
    templates = [deployment_of(found)["template"] for found in (before, after)]
    annotations = [template["metadata"].pop("annotations") for template in templates]
    assert templates[0] == templates[1]
    assert annotations[0] != annotations[1]
