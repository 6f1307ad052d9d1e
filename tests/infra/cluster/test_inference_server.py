"""What the cluster gets for the inference server."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pulumi
import pytest

from contract.signature import ROLLOUT_KEY_NAME, rollout_key
from contract.specs import InferenceServerSpec, load
from tests.infra.program_stacks import SECRETS, stack
from tests.infra.recorded_program import TOKEN, Program, changed_objects, run_program

NAME = "small-inference-server"
WITH_KEYS = {"group_token": TOKEN, "api_keys": SECRETS["api_keys"]}
WITHOUT_KEYS = {"group_token": TOKEN}


def program(folder: Path, secrets: dict[str, str] | None = None, **server: Any) -> Program:
    return run_program(stack(folder, inference_server=server), secrets=secrets)


def pod_of(found: Program) -> dict[str, Any]:
    return found.one("Deployment", NAME).manifest["spec"]["template"]["spec"]


def spec_of(found: Program, folder: Path) -> InferenceServerSpec:
    """The spec file that the pod mounts, read as the inference server reads it."""
    path = folder / "spec.json"
    path.write_text(found.one("ConfigMap", NAME).manifest["data"]["inference_server.json"])
    return load(path, InferenceServerSpec)


def test_it_is_on_a_port_of_every_node(tmp_path):
    service = program(tmp_path, node_port=31600).one("Service", NAME).manifest
    assert service["spec"]["type"] == "NodePort"
    assert service["spec"]["ports"] == [
        {"name": "http", "port": 31504, "targetPort": "http", "nodePort": 31600}
    ]
    assert service["metadata"]["namespace"] == "inference-server"
    assert service["metadata"]["annotations"] == {"pulumi.com/skipAwait": "true"}
    default = program(tmp_path).one("Service", NAME).manifest["spec"]
    assert default["ports"][0]["nodePort"] == 31504


def test_the_pod_starts_the_inference_server_as_on_one_machine(tmp_path):
    found = program(tmp_path, WITHOUT_KEYS, anonymous=True, max_body_bytes=1000)
    (container,) = pod_of(found)["containers"]
    assert container["command"] == [
        "python", "-m", "inference_server", "--spec", "/etc/splitstack/inference_server.json",
    ]  # fmt: skip
    assert container["ports"] == [{"name": "http", "containerPort": 31504, "protocol": "TCP"}]
    assert container["readinessProbe"]["httpGet"] == {
        "path": "/readyz?self", "port": 31504, "scheme": "HTTP",
    }  # fmt: skip
    assert pod_of(found)["terminationGracePeriodSeconds"] == 115
    spec = spec_of(found, tmp_path)
    assert (spec.port, spec.max_body_bytes, spec.request_deadline_s) == (31504, 1000, 100.0)


def test_discovery_may_follow_blocks_and_nothing_else(tmp_path):
    found = program(tmp_path)
    spec = spec_of(found, tmp_path)
    assert (spec.discovery_namespace, spec.blocks) == ("blocks", ())
    role = found.one("Role", NAME).manifest
    assert role["metadata"]["namespace"] == "blocks"
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["services"], "verbs": ["list", "watch"]},
        {
            "apiGroups": ["discovery.k8s.io"],
            "resources": ["endpointslices"],
            "verbs": ["list", "watch"],
        },
    ]
    binding = found.one("RoleBinding", NAME).manifest
    assert binding["roleRef"]["name"] == NAME
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": NAME, "namespace": "inference-server"}
    ]
    account = found.one("ServiceAccount", NAME)
    assert account.manifest["automountServiceAccountToken"] is False
    pod = pod_of(found)
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == (NAME, True)
    waited_for = found.one("Deployment", NAME).depends_on
    assert {account.urn, found.one("RoleBinding", NAME).urn} <= set(waited_for)


def test_a_static_table_needs_no_right(tmp_path):
    found = program(tmp_path, discovery="static")
    spec = spec_of(found, tmp_path)
    assert spec.discovery_namespace == ""
    assert [(block.block_id, block.url) for block in spec.blocks] == [
        ("block", "http://small-proxy-block.blocks.svc:8082")
    ]
    for kind in ("Role", "RoleBinding", "ServiceAccount"):
        assert NAME not in {item.name for item in found.of_kind(kind)}
    pod = pod_of(found)
    assert "serviceAccountName" not in pod
    assert pod["automountServiceAccountToken"] is False


def test_keys_are_a_mounted_secret(tmp_path):
    found = program(tmp_path, WITH_KEYS)
    (container,) = pod_of(found)["containers"]
    assert container["command"][-2:] == ["--api-keys-file", "/run/secrets/splitstack/api_keys"]
    secret = found.one("Secret", NAME)
    *given, own = json.loads(secret.manifest["stringData"]["api_keys"])
    assert given == json.loads(SECRETS["api_keys"])
    key = rollout_key(TOKEN.encode())
    assert own == {"name": ROLLOUT_KEY_NAME, "sha256": hashlib.sha256(key.encode()).hexdigest()}
    assert "stringData.api_keys" in secret.secrets or "stringData" in secret.secrets
    assert secret.urn in found.one("Deployment", NAME).depends_on
    mounted = {item.get("secret", {}).get("secretName") for item in pod_of(found)["volumes"]}
    assert NAME in mounted


def test_without_keys_there_is_no_secret(tmp_path):
    found = program(tmp_path, WITHOUT_KEYS, anonymous=True)
    (container,) = pod_of(found)["containers"]
    assert "--api-keys-file" not in container["command"]
    assert NAME not in {item.name for item in found.of_kind("Secret")}


def test_who_may_ask_is_said(tmp_path):
    with pytest.raises(pulumi.RunError, match=r"inference_server\.anonymous = False: there are no"):
        program(tmp_path, WITHOUT_KEYS)
    with pytest.raises(pulumi.RunError, match=r"anonymous = True: is refused beside splits"):
        program(tmp_path, WITH_KEYS, anonymous=True)
    program(tmp_path, WITHOUT_KEYS, enabled=False)


def test_other_pages_are_in_the_spec(tmp_path):
    assert spec_of(program(tmp_path), tmp_path).cors_origins == ()
    found = program(tmp_path, cors_origins=["https://chat.test", "http://[::1]:3000"])
    assert spec_of(found, tmp_path).cors_origins == ("https://chat.test", "http://[::1]:3000")
    with pytest.raises(pulumi.RunError, match=r"cors_origins\[0\] = 'https://chat.test/': must be"):
        program(tmp_path, cors_origins=["https://chat.test/"])


def test_an_alias_is_edited_without_touching_a_rank_or_a_block(tmp_path):
    before, after = (
        program(tmp_path, aliases={"chat": {"block": 9, "green": share}}) for share in (1, 9)
    )
    assert changed_objects(before, after) == {("ConfigMap", NAME), ("Deployment", NAME)}
    assert spec_of(after, tmp_path).aliases == {"chat": {"block": 9, "green": 9}}
    assert before.outputs["spec_hash"] == after.outputs["spec_hash"]


def test_revoking_a_key_rolls_nothing(tmp_path):
    before, after = (
        program(tmp_path, {"group_token": TOKEN, "api_keys": keys})
        for keys in (SECRETS["api_keys"], "[]")
    )
    assert changed_objects(before, after) == {("Secret", NAME)}


@pytest.mark.parametrize("kept", [True, False])
def test_the_request_log_has_a_folder_that_can_be_written(tmp_path, kept):
    found = program(tmp_path, request_log={"enabled": kept})
    path = spec_of(found, tmp_path).request_log_path
    (container,) = pod_of(found)["containers"]
    writable = {item["mountPath"] for item in container["volumeMounts"] if not item.get("readOnly")}
    assert (path in {f"{folder}/requests.sqlite3" for folder in writable}) is kept


def test_a_stack_may_do_without(tmp_path):
    found = program(tmp_path, enabled=False)
    assert [item for item in found.objects if "inference-server" in item.name] == []
