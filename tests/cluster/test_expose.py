"""How the inference server is reached, edited: the real engine against a real API server."""

from __future__ import annotations

import pytest
from kubernetes import client

from infra.inspection.doctor import examine
from infra.stack.file import parse_deployment
from tests.cluster.applied_stack import stack_mapping, write_stack
from tests.cluster.nodes import Node
from tests.cluster.plugin_choice import plugin_folders
from tests.cluster.pulumi_workspace import PulumiWorkspace
from tests.infra.recorded_program import TOKEN
from tests.programs import CONTROL_PLANE, PULUMI, needs

pytestmark = [needs(*CONTROL_PLANE, *PULUMI), pytest.mark.slow]

EXPOSE = "splitstack:deployment.inference_server.expose"
NAME, NAMESPACE = "exposed-inference-server", "exposed-public"


@pytest.fixture(scope="module")
def mapping(control_plane):
    control_plane.add_nodes([Node("exposed-1"), Node("exposed-2")])
    return stack_mapping(control_plane, "exposed")


@pytest.fixture(scope="module")
def workspace(mapping, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exposed")
    plugins = plugin_folders(folder / "plugins")
    found = PulumiWorkspace(folder / "workspace", write_stack(folder, mapping), plugins=plugins)
    found.set("splitstack:group_token", TOKEN, secret=True)
    yield found
    assert found.destroy().succeeded


@pytest.fixture
def api(control_plane):
    with control_plane.client() as found:
        yield found


def service_of(api):
    return client.CoreV1Api(api).read_namespaced_service(NAME, NAMESPACE).spec


def test_a_port_of_every_node(workspace, mapping, api):
    up = workspace.up()
    assert up.succeeded, up.output
    addresses = {
        address.address
        for node in client.CoreV1Api(api).list_node().items
        for address in node.status.addresses or []
    }
    port = mapping["inference_server"]["node_port"]
    url = workspace.outputs()["urls"]["inference_server"]
    assert url in {f"http://{address}:{port}" for address in addresses}
    assert service_of(api).type == "NodePort"


def test_an_ingress_instead(workspace, api):
    """Nothing but the front is touched, and the certificate that is not there is said."""
    given = {"mode": "ingress", "host": "chat.test", "tls_secret": "chat-tls"}
    for key, value in given.items():
        workspace.set(f"{EXPOSE}.{key}", value)
    up = workspace.up()
    assert up.succeeded, up.output
    assert up.changes == {f"Service::{NAME}": "update", f"Ingress::{NAME}": "create"}
    assert "there is no Secret chat-tls in namespace exposed-public yet" in up.messages
    found = client.NetworkingV1Api(api).read_namespaced_ingress(NAME, NAMESPACE).spec
    assert [rule.host for rule in found.rules] == ["chat.test"]
    assert [one.secret_name for one in found.tls] == ["chat-tls"]
    assert service_of(api).type == "ClusterIP"
    assert service_of(api).ports[0].node_port is None
    assert workspace.outputs()["urls"]["inference_server"] == "https://chat.test"


def test_a_load_balancer_instead(workspace, api):
    for key, value in {"mode": "load_balancer", "host": "", "tls_secret": ""}.items():
        workspace.set(f"{EXPOSE}.{key}", value)
    up = workspace.up()
    assert up.succeeded, up.output
    assert up.changes == {
        f"Service::{NAME}": "update",
        f"Ingress::{NAME}": "delete",
        "Job::exposed-rollout": "replace",
    }
    assert service_of(api).type == "LoadBalancer"
    # As whoever makes load balancers in a cloud does.
    status = {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}}
    client.CoreV1Api(api).patch_namespaced_service_status(NAME, NAMESPACE, status)
    assert workspace.up(refresh=True).succeeded
    outputs = workspace.outputs()
    assert outputs["urls"]["inference_server"] == "http://203.0.113.7"
    assert outputs["curl"].startswith("curl -X POST http://203.0.113.7/v1/infer")


def test_what_doctor_says(mapping):
    """Of what an Ingress, a Gateway and an alias need; the cluster has none of it."""

    def findings(**server):
        changed = mapping | {"inference_server": mapping["inference_server"] | server}
        return [str(item) for item in examine(parse_deployment(changed))]

    ingress = {"mode": "ingress", "host": "a.b", "class_name": "some", "tls_secret": "chat-tls"}
    told = "\n".join(findings(expose=ingress, aliases={"chat": {"block": 1, "other": 1}}))
    assert "there is no ingress class some (inference_server.expose.class_name)" in told
    assert "warning  cluster home: there is no secret chat-tls in namespace exposed-pub" in told
    assert "aliases.chat.other: there is no such block in namespace exposed-blocks yet" in told
    gateway = {"mode": "gateway", "host": "a.b", "gateway": "edge/public"}
    told = "\n".join(findings(expose=gateway))
    assert "there is no gateway public in namespace edge (inference_server.expose.gate" in told
