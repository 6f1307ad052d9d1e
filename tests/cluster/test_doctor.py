"""`splitstack doctor` against a real API server: what would stop `pulumi up`, one sentence each."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from kubernetes import client

from infra.inspection.doctor import examine
from infra.stack.file import parse_deployment
from tests.cluster.applied_stack import DEMO, REGISTRY, applied, stack_mapping, write_stack
from tests.cluster.nodes import Node
from tests.infra.cli.test_app import splitstack
from tests.infra.recorded_program import DIGEST
from tests.programs import CONTROL_PLANE, needs
from tests.waiting import free_ports

pytestmark = needs(*CONTROL_PLANE)


@pytest.fixture(scope="module")
def nodes(control_plane):
    dear = {"key": "dear", "value": "yes", "effect": "NoSchedule"}
    gpu_nodes = [Node("doctor-gpu", gpus=2), Node("doctor-claims", gpus=1)]
    control_plane.add_nodes([*gpu_nodes, Node("doctor-tainted", gpus=1, taints=(dear,))])
    control_plane.add_gpu_driver(gpu_nodes[1:])


def findings(mapping, level="fault"):
    """Texts about clusters; what registries say is tested on its own."""
    found = [item for item in examine(parse_deployment(mapping)) if "image" not in item.subject]
    return [item.text for item in found if item.level == level]


def on_node(node, **more):
    return {"node_id": node, "cpu": 1, "memory": "1Gi"} | more


def on_gpus(control_plane, name, *nodes, **changes):
    ranks = [{"rank": rank} | on_node(node) for rank, node in enumerate(nodes)]
    return stack_mapping(
        control_plane,
        name,
        **{"nnodes": len(ranks), "per_rank_params": ranks, "gpu_pinning": "resource"} | changes,
    )


def test_nothing_to_say(control_plane, nodes, tmp_path):
    mapping = stack_mapping(control_plane, "healthy")
    assert findings(mapping) == []
    assert (
        findings(mapping, "fine")[1] == "rights, names, nodes, devices and admission suit healthy"
    )
    path = str(write_stack(tmp_path, mapping))
    done = splitstack(tmp_path, "doctor", "-s", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"answers at {control_plane.url}" in done.stdout
    done = splitstack(tmp_path, "doctor", "-s", path, "--json")
    assert json.loads(done.stdout)[0]["level"] == "fine"


def test_a_stack_that_is_up_is_in_nobodys_way(control_plane, nodes):
    mapping = stack_mapping(control_plane, "running")
    with applied(control_plane, mapping):
        assert findings(mapping) == []


def test_objects_that_are_not_ours(control_plane, nodes):
    other = stack_mapping(control_plane, "first")
    with applied(control_plane, other):
        shared = {key: other[key] for key in ("namespace", "namespaces", "inference_server")}
        second = stack_mapping(control_plane, "second", **shared)
        port = shared["inference_server"]["node_port"]
        found = findings(second)
        assert len(found) == 4
        assert found[0].startswith(f"node port {port} is taken by service first-public/first-inf")
        assert found[1].startswith("namespace first-splits exists and is of first; set namespaces.")
        with control_plane.client() as api:
            taken = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="third-spec"))
            client.CoreV1Api(api).create_namespaced_config_map("first-splits", taken)
        third = stack_mapping(
            control_plane,
            "third",
            **shared | {"namespaces": shared["namespaces"] | {"create": False}},
        )
        assert "configmaps/third-spec in namespace first-splits exists" in " ".join(findings(third))


def test_what_somebody_else_has_to_make(control_plane, nodes):
    mapping = on_gpus(
        control_plane,
        "needy",
        "doctor-gpu",
        namespaces={"create": False, "blocks": "needy-blocks", "inference_server": "needy-public"},
        priority_class="serving",
        image_pull_secrets=["registry"],
        model_cache={"mode": "existing-claim", "claim_name": "weights"},
        pod_template={"env_from": [{"config_map": "site"}]},
        ca_bundle={"config_map": "authorities"},
        proxy_blocks=[{"block_id": "block", "max_instances": 3}],
        session_store={"mode": "url", "url": "redis://store.test:6379/0"},
    )
    found = findings(mapping)
    for what in (
        "namespace needy-splits (namespaces.create is false)",
        "secret registry in namespace needy-blocks (image_pull_secrets)",
        "priority class serving (priority_class)",
        "claim weights in namespace needy-splits (model_cache.claim_name)",
        "config map site in namespace needy-splits (pod_template)",
        "config map authorities in namespace needy-splits (ca_bundle.config_map)",
        "config map authorities in namespace needy-blocks (ca_bundle.config_map)",
        "metrics-server, which autoscalers ask (proxy_blocks.max_instances)",
    ):
        assert f"there is no {what}" in found


def test_nodes_that_are_missing_tainted_or_cordoned(control_plane, nodes):
    found = findings(on_gpus(control_plane, "lost", "doctor-gone", "doctor-tainted"))
    assert found[0].startswith("node doctor-gone of rank 0 does not exist (kubernetes.io/hostname")
    refusal = "taint dear=yes:NoSchedule is not in tolerations"
    assert found[1] == f"node doctor-tainted does not take rank 1: {refusal}"
    tolerated = [{"key": "dear", "operator": "Exists"}]
    assert findings(on_gpus(control_plane, "rich", "doctor-tainted", tolerations=tolerated)) == []
    with control_plane.client() as api:
        core = client.CoreV1Api(api)
        core.patch_node("doctor-gpu", {"spec": {"unschedulable": True}})
        (text,) = findings(on_gpus(control_plane, "held", "doctor-gpu"))
        core.patch_node("doctor-gpu", {"spec": {"unschedulable": False}})
    assert text == "node doctor-gpu does not take rank 0: it is cordoned"


def test_more_than_a_node_has(control_plane, nodes):
    (text,) = findings(on_gpus(control_plane, "crowd", *["doctor-gpu"] * 3))
    expected = "2 left of 2 nvidia.com/gpu, and ranks 0, 1, 2 together ask for 3"
    assert text == f"node doctor-gpu has {expected}"
    with applied(control_plane, on_gpus(control_plane, "earlier", "doctor-claims")):
        (text,) = findings(on_gpus(control_plane, "later", "doctor-claims"))
        assert "doctor-claims has 0 left of 1 nvidia.com/gpu, and rank 0 asks for 1" in text
    ranks = [{"rank": 0, "node_id": "doctor-gpu", "memory": "1Ti", "cpu": 500}]
    huge = stack_mapping(control_plane, "huge", nnodes=1, per_rank_params=ranks)
    assert [text.partition(" left of ")[2].split()[0] for text in findings(huge)] == ["32", "256.0"]
    # Rank 0's pod has the master's container too.
    ranks = [{"rank": 0, "node_id": "doctor-gpu", "memory": "4Gi", "cpu": 32}]
    (text,) = findings(stack_mapping(control_plane, "full", nnodes=1, per_rank_params=ranks))
    assert "32 cpu, and rank 0 asks for 33" in text


def test_room_for_pods_that_name_no_node(control_plane, nodes):
    (text,) = findings(stack_mapping(control_plane, "wide", per_rank_params=[big(0), big(1)]))
    assert text.startswith("no node has room for rank 1, which asks for 20 cpu, 200.0 GiB memory, ")
    assert "doctor-gpu has " in text


def big(rank):
    """Two of the test's nodes would hold one each, were it not for the labels."""
    chosen = {"node_selector": {"kubernetes.io/hostname": "doctor-gpu"}}
    return {"rank": rank, "cpu": 20, "memory": "200Gi", "placement": chosen}


def test_pods_that_no_node_takes(control_plane, nodes):
    where = {"node_selector": {"pool": "nowhere"}}
    mapping = stack_mapping(
        control_plane,
        "nowhere",
        placement=where,
        inference_server={"node_port": 30999, "anonymous": True} | where,
    )
    (ranks, server) = sorted(findings(mapping), key=lambda text: "inference" in text)
    assert ranks.startswith("no node takes ranks 0, 1: ")
    assert "doctor-gpu: its label pool is not there, not nowhere" in ranks
    assert server.startswith("no node takes inference server: ")


def test_storage_classes_and_secrets_that_nobody_has_made(control_plane, nodes):
    claims = {"mode": "own-claim", "size": "1Gi"}
    (text,) = findings(stack_mapping(control_plane, "classless", model_cache=claims))
    assert text.startswith("model_cache.storage_class is empty, and no storage class is the def")
    named = claims | {"storage_class": "fast"}
    (text,) = findings(stack_mapping(control_plane, "fast", model_cache=named))
    assert text == "there is no storage class fast (model_cache.storage_class)"
    early = stack_mapping(control_plane, "early", image_pull_secrets=["registry"])
    (text,) = findings(early, "warning")
    assert "secret registry (image_pull_secrets) is to be made in early-splits" in text


def test_a_driver_that_is_too_old(control_plane, nodes):
    labels = {"nvidia.com/cuda.driver.major": "550"}
    control_plane.add_nodes([Node("doctor-old", gpus=1, labels=labels)])
    mapping = on_gpus(control_plane, "dated", "doctor-old")
    assert findings(mapping) == []
    (text,) = findings(mapping, "warning")
    assert text.startswith("node doctor-old has NVIDIA driver 550; CUDA 13.0")


def test_nodes_of_another_architecture(control_plane, nodes):
    """Images that are built, for what the nodes are or what the file says."""
    built = {
        "common_params": {"model_name": "some/model", "image": f"{REGISTRY}/runner:1"},
        "images": {"builder": "docker"},
        "per_rank_params": [{"rank": rank, "layers": f"{rank}"} for rank in range(2)],
    }
    mapping = stack_mapping(control_plane, "built", **built)
    assert findings(mapping) == []
    labels = {"kubernetes.io/arch": "s390x"}
    control_plane.add_nodes([Node("doctor-other", labels=labels)])
    try:
        (text,) = findings(mapping)
        assert text.startswith("images.platform: must be given: the nodes are amd64 and s390x, ")
        given = mapping | {"images": built["images"] | {"platform": "linux/amd64"}}
        assert findings(given) == []
        (text,) = (text for text in findings(given, "warning") if "doctor-other" in text)
        assert text.startswith(
            "node doctor-other is s390x, takes pods of this stack and cannot run"
        )
    finally:
        with control_plane.client() as api:
            client.CoreV1Api(api).delete_node("doctor-other")


def test_devices_that_no_driver_publishes(control_plane, nodes):
    ranks = [
        {"rank": 0, "device_uuid": "GPU-doctor-claims-0"},
        {"rank": 1, "device_uuid": "GPU-nobody-has"},
    ]
    mapping = stack_mapping(control_plane, "claims", gpu_pinning="dra", per_rank_params=ranks)
    (text,) = findings(mapping)
    assert text.startswith("no driver publishes device GPU-nobody-has of rank 1 (published: ")


def test_a_user_with_too_few_rights(control_plane, nodes):
    with control_plane.client() as api:
        rbac = client.RbacAuthorizationV1Api(api)
        role = {
            "metadata": {"name": "reads-pods"},
            "rules": [
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
            ],
        }
        binding = {
            "metadata": {"name": "reads-pods"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "reads-pods",
            },
            "subjects": [
                {"kind": "User", "name": "reader", "apiGroup": "rbac.authorization.k8s.io"}
            ],
        }
        rbac.create_cluster_role(role)
        rbac.create_cluster_role_binding(binding)
    path = control_plane.kubeconfig_for("reader")
    mapping = stack_mapping(control_plane, "rights", clusters={"home": {"kubeconfig": str(path)}})
    found = findings(mapping)
    assert (
        "you may not create, patch, delete pods in namespace rights-splits; have the rights granted"
        in found
    )
    assert any("deployments.apps in namespace rights-blocks" in text for text in found)
    assert any("namespaces; have" in text for text in found)
    warnings = findings(mapping, "warning")
    assert "you may not list nodes: nodes and devices were not checked" in warnings
    assert any("get pods/log in namespace rights-splits" in text for text in warnings)
    assert any("get, create pods/portforward in namespace" in text for text in warnings)


def test_clusters_that_do_not_answer(control_plane, tmp_path):
    (port,) = free_ports(1)
    expired = control_plane.kubeconfig_for("expired-doctor", valid=timedelta(seconds=-5))
    (text,) = findings(
        stack_mapping(control_plane, "late", clusters={"home": {"kubeconfig": str(expired)}})
    )
    assert text == (
        "does not accept the credentials of context cluster: they have expired or were revoked; "
        "fetch a new kubeconfig or log in again"
    )
    content = json.loads(control_plane.kubeconfig.read_text())
    content["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(content))
    mapping = stack_mapping(control_plane, "away", clusters={"home": {"kubeconfig": str(path)}})
    assert findings(mapping) == [
        f"cannot be reached at https://127.0.0.1:{port}: Connection refused"
    ]


def test_a_stack_that_does_not_fit_its_own_file(control_plane):
    ranks = [{"rank": 0, "memory": "100Mi"}]
    mapping = stack_mapping(control_plane, "tiny", nnodes=1, per_rank_params=ranks)
    (text,) = findings(mapping)
    assert "rank 0" in text


def test_a_stack_without_clusters(tmp_path):
    image = {"model_name": DEMO, "image": f"registry.test/runner@{DIGEST}"}
    mapping = {"deployment_name": "local", "nnodes": 1, "common_params": image}
    path = write_stack(tmp_path, mapping | {"proxy_blocks": [{"block_id": "block"}]})
    done = splitstack(tmp_path, "doctor", "-s", str(path))
    assert done.returncode == 2
    assert "clusters = {}: must declare each cluster" in done.stderr
