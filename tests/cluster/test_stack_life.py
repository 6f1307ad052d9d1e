"""One stack from preview to destroy: the real engine, a real API server, simulated nodes.

Each test goes on where the one before it ended, as the person at the keyboard does.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml
from kubernetes import client
from kubernetes.dynamic import DynamicClient

from contract.signature import management_key
from infra.cluster.labels import INSTANCE, MANAGED_BY
from tests.cluster.nodes import Node
from tests.cluster.plugin_choice import plugin_folders
from tests.cluster.pulumi_workspace import REPOSITORY, PulumiWorkspace
from tests.infra.recorded_program import DIGEST
from tests.programs import CONTROL_PLANE, PULUMI, needs
from tests.waiting import wait_for

pytestmark = [needs(*CONTROL_PLANE, *PULUMI), pytest.mark.slow]

NAME = "phi-128k-2"
RANKS = [f"{NAME}-rank-{rank}" for rank in range(4)]
NODES = dict(zip(RANKS, ["wc-gpu-node2"] * 2 + ["wc-gpu-node3"] * 2, strict=True))
DEPLOYMENT = "splitstack:deployment"
TOKEN = "a token of these tests"


def seed_stack(control_plane) -> dict[str, Any]:
    """The AIOS notebook's deployment, with images and a model that can be had without a network."""
    text = (REPOSITORY / "stacks" / f"Pulumi.{NAME}.yaml").read_text()
    deployment: dict[str, Any] = yaml.safe_load(text)["config"][DEPLOYMENT]
    deployment["common_params"] |= {
        "image": f"registry.test/runner@{DIGEST}",
        "model_name": "demo:smollm2-135m-instruct",
    }
    deployment["images"] = {
        "builder": "reference",
        "proxy_block": f"registry.test/proxy-block@{DIGEST}",
        "inference_server": f"registry.test/inference-server@{DIGEST}",
    }
    deployment["clusters"] = {"gcp-cluster-2": {"kubeconfig": str(control_plane.kubeconfig)}}
    deployment["inference_server"] = {"anonymous": True}
    return deployment


def open_workspace(folder, name: str, deployment: Mapping[str, Any]) -> PulumiWorkspace:
    folder.mkdir(exist_ok=True)
    stack_file = folder / f"Pulumi.{name}.yaml"
    stack_file.write_text(yaml.safe_dump({"config": {DEPLOYMENT: dict(deployment)}}))
    workspace = PulumiWorkspace(
        folder / "workspace", stack_file, plugins=plugin_folders(folder / "plugin")
    )
    workspace.set("splitstack:group_token", TOKEN, secret=True)
    return workspace


@pytest.fixture(scope="module")
def workspace(control_plane, tmp_path_factory):
    control_plane.add_nodes([Node("wc-gpu-node2", gpus=2), Node("wc-gpu-node3", gpus=2)])
    with control_plane.client() as api:
        nvidia = {"metadata": {"name": "nvidia"}, "handler": "nvidia"}
        client.NodeV1Api(api).create_runtime_class(nvidia)
    folder = tmp_path_factory.mktemp("stack-life")
    return open_workspace(folder, NAME, seed_stack(control_plane))


@pytest.fixture
def core(control_plane):
    with control_plane.client() as api:
        yield client.CoreV1Api(api)


def ranks(core) -> dict[str, Any]:
    pods = core.list_namespaced_pod("splits", label_selector=f"{INSTANCE}={NAME}").items
    return {pod.metadata.name: pod for pod in pods if "-rank-" in pod.metadata.name}


def uids(core) -> dict[str, str]:
    return {name: pod.metadata.uid for name, pod in ranks(core).items()}


def our_objects(control_plane, instance: str) -> list[str]:
    """Every object of any kind that carries our labels."""
    found = []
    with control_plane.client() as api:
        kinds = DynamicClient(api).resources
        for kind in kinds.search(preferred=True):
            if "list" in kind.verbs and "/" not in kind.name and not kind.kind.endswith("List"):
                selector = f"{MANAGED_BY}=splitstack,{INSTANCE}={instance}"
                items = kind.get(label_selector=selector).items
                found += [f"{kind.kind} {item.metadata.name}" for item in items]
    return found


def test_preview_shows_the_plan_and_creates_nothing(workspace, control_plane):
    run = workspace.preview()
    assert run.succeeded, run.output
    assert set(run.counts) == {"create"}
    assert {f"Pod::{name}" for name in RANKS} <= set(run.operations)
    plan = [line.split() for line in run.messages.splitlines() if "wc-gpu-node" in line]
    assert [(row[0], row[1], row[4]) for row in plan] == [
        ("0", "wc-gpu-node2", "0-8"),
        ("1", "wc-gpu-node2", "9-17"),
        ("2", "wc-gpu-node3", "18-27"),
        ("3", "wc-gpu-node3", "28-29"),
    ]
    assert our_objects(control_plane, NAME) == []


def test_up_puts_every_rank_where_the_file_says(workspace, core):
    run = workspace.up()
    assert run.succeeded, run.output
    found = ranks(core)
    assert {name: pod.spec.node_name for name, pod in found.items()} == NODES
    containers = {name: [item.name for item in pod.spec.containers] for name, pod in found.items()}
    assert containers.pop(RANKS[0]) == ["master", "stage"]
    assert list(containers.values()) == [["stage"]] * 3
    devices = {}
    for name, pod in found.items():
        stage = next(item for item in pod.spec.containers if item.name == "stage")
        given = {item.name: item.value for item in stage.env}
        devices[name] = (given["NVIDIA_VISIBLE_DEVICES"], given["CUDA_VISIBLE_DEVICES"])
    expected = [("0", "0"), ("0,1", "1"), ("0", "0"), ("1", "0")]
    assert devices == dict(zip(RANKS, expected, strict=True))


def test_services_have_the_names_and_ports_that_aios_users_know(workspace, core):
    rank_master = core.read_namespaced_service(f"{NAME}-rank-master", "splits").spec
    assert rank_master.cluster_ip == "None"
    assert {port.name: port.port for port in rank_master.ports} == {"group": 3000, "http": 8080}
    server = core.read_namespaced_service(f"{NAME}-inference-server", "inference-server").spec
    assert (server.type, server.ports[0].node_port) == ("NodePort", 31504)
    outputs = workspace.outputs()
    assert [rank["node"] for rank in outputs["ranks"]] == list(NODES.values())
    assert ":31504/v1/infer" in outputs["curl"]
    assert all("@sha256:" in image for image in outputs["images"].values())


def test_the_management_key_is_a_secret_output_and_what_a_block_mounts(workspace, core):
    key = management_key(TOKEN.encode())
    assert workspace.outputs()["management_key"] == key
    assert key not in json.dumps(workspace.state())
    secret = core.read_namespaced_secret(f"{NAME}-proxy-{NAME}", "blocks").data
    assert base64.b64decode(secret["management_key"]).decode() == key


def test_a_second_up_changes_nothing(workspace, core):
    before = uids(core)
    run = workspace.up()
    assert run.succeeded, run.output
    assert run.changes == {}
    assert uids(core) == before


def test_a_new_system_message_touches_the_proxy_only(workspace, core):
    before = uids(core)
    workspace.set(f"{DEPLOYMENT}.proxy_blocks[0].system_message", "Answer in one sentence.")
    run = workspace.up()
    assert run.succeeded, run.output
    proxy = f"{NAME}-proxy-{NAME}"
    assert run.changes == {f"ConfigMap::{proxy}": "update", f"Deployment::{proxy}": "update"}
    assert uids(core) == before


def test_a_larger_model_and_another_limit_replace_no_pod(workspace, core, tmp_path):
    before = uids(core)
    config = json.loads((REPOSITORY / "infra" / "plan" / "demo_model_config.json").read_text())
    # A new stack would ask for more memory: what runs keeps what it has.
    config["intermediate_size"] *= 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    workspace.set(f"{DEPLOYMENT}.common_params.model_name", str(tmp_path))
    workspace.set(f"{DEPLOYMENT}.common_params.max_concurrent_requests", "8")
    run = workspace.up()
    assert run.succeeded, run.output
    assert run.changes == {
        f"ConfigMap::{NAME}-rollout": "replace",
        f"Job::{NAME}-rollout": "replace",
        f"ConfigMap::{NAME}-spec": "update",
    }
    assert "free: max_concurrent_requests 64 -> 8. Taken between two steps" in run.messages
    assert "swap: model_name" in run.messages
    assert "No pod is replaced for it" in " ".join(run.messages.split())
    assert uids(core) == before


def test_one_rank_s_limit_replaces_its_pod_alone(workspace, core):
    before = uids(core)
    workspace.set(f"{DEPLOYMENT}.per_rank_params[2].nccl_socket_ifname", "eth1")
    run = workspace.up()
    assert run.succeeded, run.output
    assert run.changes == {f"Pod::{RANKS[2]}": "replace", f"ConfigMap::{RANKS[2]}": "update"}
    assert "pod: nccl_socket_ifname of rank 2" in run.messages
    after = uids(core)
    assert after.pop(RANKS[2]) != before.pop(RANKS[2])
    assert after == before


def test_a_new_token_replaces_the_four_ranks_and_is_told_nowhere(workspace, core):
    before = uids(core)
    workspace.set("splitstack:group_token", "another token of these tests", secret=True)
    run = workspace.up()
    assert run.succeeded, run.output
    replaced = {f"Pod::{name}": "replace" for name in RANKS}
    secrets = {f"Secret::{NAME}-ranks": "update", f"Secret::{NAME}-proxy-{NAME}": "update"}
    rollout = {f"Secret::{NAME}-rollout": "update", f"Job::{NAME}-rollout": "replace"}
    assert run.changes == replaced | secrets | rollout
    assert not set(uids(core).values()) & set(before.values())
    assert workspace.up().changes == {}


def test_a_rank_deleted_by_hand_comes_back_with_refresh(workspace, core):
    before = uids(core)
    core.delete_namespaced_pod(RANKS[2], "splits", grace_period_seconds=0)
    wait_for(lambda: RANKS[2] not in ranks(core), what="the rank gone")
    assert workspace.up().changes == {}  # the engine believes its state
    # Without one of its ranks the group is not ready, and with it the master is not.
    set_ready(core, RANKS[0], ready=False)
    with ThreadPoolExecutor() as beside:
        group = beside.submit(ready_with, core, RANKS[0], RANKS[2])
        run = workspace.up(refresh=True)
    group.result()
    assert run.succeeded, run.output
    assert f"Pod::{RANKS[2]}" in run.changes
    after = uids(core)
    assert after.pop(RANKS[2]) != before.pop(RANKS[2])
    assert after == before
    assert "replace" not in run.changes.values()


def test_a_rank_that_a_node_evicted_makes_way(workspace, core):
    before = uids(core)
    evicted = {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}
    core.patch_namespaced_pod_status(RANKS[3], "splits", {"status": evicted})
    run = workspace.up()
    assert run.succeeded, run.output
    assert f"{RANKS[3]} has failed (Evicted: low on memory): another comes" in run.messages
    assert run.changes == {f"Pod::{RANKS[3]}": "replace"}
    after = uids(core)
    assert after.pop(RANKS[3]) != before.pop(RANKS[3])
    assert after == before
    assert workspace.up().changes == {}


def set_ready(core, name: str, *, ready: bool) -> None:
    condition = {"type": "Ready", "status": str(ready)}
    core.patch_namespaced_pod_status(name, "splits", {"status": {"conditions": [condition]}})


def ready_with(core, master: str, lost: str) -> None:
    """The group forms as soon as the lost rank is back, whatever the engine does meanwhile."""

    def is_back() -> bool:
        return lost in ranks(core) and ranks(core)[lost].status.phase == "Running"

    wait_for(is_back, 120, f"{lost} back")
    set_ready(core, master, ready=True)


def test_a_second_stack_beside_the_first(workspace, control_plane, core, tmp_path):
    before = uids(core)
    second = seed_stack(control_plane) | {
        "deployment_name": "second",
        "nnodes": 1,
        "per_rank_params": [],
        "gpu_pinning": "none",
        "namespaces": {"create": False},
        "inference_server": {"enabled": False},
        "proxy_blocks": [{"block_id": "second"}],
    }
    beside = open_workspace(tmp_path, "second", second)
    run = beside.up()
    assert run.succeeded, run.output
    assert core.read_namespaced_pod("second-rank-0", "splits").status.phase == "Running"
    assert beside.destroy().succeeded
    assert our_objects(control_plane, "second") == []
    assert uids(core) == before


def test_destroy_leaves_nothing(workspace, control_plane, core):
    run = workspace.destroy()
    assert run.succeeded, run.output
    assert our_objects(control_plane, NAME) == []
    namespaces = {item.metadata.name for item in core.list_namespace().items}
    assert not namespaces & {"splits", "blocks", "inference-server"}
    assert workspace.state().get("resources", []) == []
