"""Blocks found by watching Services and EndpointSlices of a real API server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import kubernetes.client
import pytest
import yaml

from contract.names import BLOCK_ID_ANNOTATION, COMPONENT_ANNOTATION, LABELS_ANNOTATION
from contract.specs import InferenceServerSpec, ProxySpec, SessionsSpec
from inference_server.blocks.discovery import SELECTOR, SERVICE_NAME
from tests.cluster.control_plane import ControlPlane
from tests.e2e.tcp_proxy import TcpProxy
from tests.programs import needs
from tests.waiting import free_ports, wait_for
from tests.web.small_upstream import DEPLOYMENT, SmallUpstream
from tests.web.tier_process import TierProcess
from web.carried_request import PATIENCE_S

pytestmark = [pytest.mark.slow, needs("kube-apiserver")]

NAMESPACE = "discovered-blocks"


def own_address() -> str:
    """An address of this machine that an EndpointSlice may have: loopback ones are refused."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but the loopback")
        found: str = probe.getsockname()[0]
        return found


class Blocks:
    """Services and EndpointSlices, as the deployment and its controllers would make them."""

    def __init__(self, api: kubernetes.client.ApiClient) -> None:
        self.core = kubernetes.client.CoreV1Api(api)
        self.slices = kubernetes.client.DiscoveryV1Api(api)

    def create(
        self, name: str, endpoints: list[dict[str, Any]], port: int, **annotations: str
    ) -> None:
        key, value = SELECTOR.split("=")
        values = {
            BLOCK_ID_ANNOTATION: name,
            COMPONENT_ANNOTATION: "model.x:1-y",
            LABELS_ANNOTATION: '{"tier": "gold"}',
        }
        ports = [{"name": "http", "port": 8082}]
        service = {
            "metadata": {
                "name": name,
                "labels": {key: value},
                "annotations": values | annotations,
            },
            "spec": {"ports": ports},
        }
        self.core.create_namespaced_service(NAMESPACE, service)
        endpoint_slice = {
            "metadata": {"name": name, "labels": {SERVICE_NAME: name}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": port}],
            "endpoints": endpoints,
        }
        self.slices.create_namespaced_endpoint_slice(NAMESPACE, endpoint_slice)

    def set_ready(self, name: str, address: str, ready: bool) -> None:
        change = {"endpoints": [{"addresses": [address], "conditions": {"ready": ready}}]}
        self.slices.patch_namespaced_endpoint_slice(name, NAMESPACE, change)

    def delete(self, name: str) -> None:
        self.slices.delete_namespaced_endpoint_slice(name, NAMESPACE)
        self.core.delete_namespaced_service(name, NAMESPACE)


@pytest.fixture(scope="module")
def blocks(control_plane: ControlPlane) -> Iterator[Blocks]:
    """The namespace, and a user with the rights that the deployment gives and no other."""
    with control_plane.client() as api:
        found = Blocks(api)
        found.core.create_namespace({"metadata": {"name": NAMESPACE}})
        rights = kubernetes.client.RbacAuthorizationV1Api(api)
        rules = [
            {"apiGroups": [group], "resources": [kind], "verbs": ["list", "watch"]}
            for group, kind in (("", "services"), ("discovery.k8s.io", "endpointslices"))
        ]
        name = {"metadata": {"name": "discovery"}}
        rights.create_namespaced_role(NAMESPACE, {**name, "rules": rules})
        user = {"kind": "User", "name": "discovery", "apiGroup": "rbac.authorization.k8s.io"}
        role = {"kind": "Role", "name": "discovery", "apiGroup": "rbac.authorization.k8s.io"}
        binding = {**name, "subjects": [user], "roleRef": role}
        rights.create_namespaced_role_binding(NAMESPACE, binding)
        yield found


@pytest.fixture(scope="module")
def network(control_plane: ControlPlane) -> Iterator[TcpProxy]:
    """The way of the inference server to the API server."""
    port = int(control_plane.url.rpartition(":")[2])
    proxy = TcpProxy(("127.0.0.1", free_ports(1)[0]), ("127.0.0.1", port))
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def kubeconfig(control_plane: ControlPlane, network: TcpProxy, blocks: Blocks) -> Path:
    path = control_plane.kubeconfig_for("discovery")
    content = yaml.safe_load(path.read_text())
    port = network.listener.getsockname()[1]
    content["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def server(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TierProcess]:
    spec = InferenceServerSpec(DEPLOYMENT, (), discovery_namespace=NAMESPACE)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("KUBECONFIG", str(kubeconfig))
        process = TierProcess("inference_server", spec, tmp_path_factory.mktemp("server"))
    with process:
        wait_for(lambda: httpx.get(f"{process.url}/readyz?self").status_code == 200)
        yield process


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TierProcess]:
    folder = tmp_path_factory.mktemp("proxy")
    sessions = SessionsSpec(str(folder / "sessions.sqlite3"))
    with SmallUpstream() as upstream:
        spec = ProxySpec(
            "found",
            DEPLOYMENT,
            upstream.url,
            sessions=sessions,
            bind_address=own_address(),
        )
        with TierProcess("proxy_block", spec, folder) as process:
            yield process


def known(server: TierProcess) -> dict[str, Any]:
    return {one["id"]: one for one in httpx.get(f"{server.url}/v1/blocks").json()["data"]}


def infer(server: TierProcess, block: str) -> httpx.Response:
    body = {"model": block, "session_id": "s", "seq_no": 1, "data": {"message": "x"}}
    # A request that nobody takes is refused after PATIENCE_S.
    return httpx.post(f"{server.url}/v1/infer", json=body, timeout=PATIENCE_S + 30)


def test_a_block_comes_serves_and_goes(
    server: TierProcess, blocks: Blocks, proxy: TierProcess
) -> None:
    assert "found" not in known(server)
    assert infer(server, "found").status_code == 404
    blocks.create("found", [{"addresses": [own_address()]}], proxy.port)
    wait_for(lambda: "found" in known(server))
    wait_for(lambda: known(server)["found"]["healthy"])
    found = known(server)["found"]
    assert (found["component"], found["labels"]) == ("model.x:1-y", {"tier": "gold"})
    assert [one["url"] for one in found["replicas"]] == [proxy.url]
    assert infer(server, "found").status_code == 200
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    blocks.delete("found")
    wait_for(lambda: "found" not in known(server))
    assert infer(server, "found").status_code == 404


def test_an_endpoint_that_is_not_ready_gets_nothing_new_and_finishes_what_it_has(
    server: TierProcess, blocks: Blocks, proxy: TierProcess
) -> None:
    address = own_address()
    blocks.create("turning", [{"addresses": [address]}], proxy.port)
    wait_for(lambda: known(server).get("turning", {}).get("healthy"))
    body = {
        "model": "turning",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
    }
    url = f"{server.url}/v1/chat/completions"
    with ExitStack() as stack:
        lines = stack.enter_context(httpx.stream("POST", url, json=body)).iter_lines()
        next(lines)
        blocks.set_ready("turning", address, ready=False)
        wait_for(lambda: not known(server)["turning"]["replicas"])
        refused = infer(server, "turning")
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_replica")
    blocks.set_ready("turning", address, ready=True)
    wait_for(lambda: infer(server, "turning").status_code == 200)
    blocks.delete("turning")


def test_services_that_are_no_blocks_are_named_in_the_log(
    server: TierProcess, blocks: Blocks
) -> None:
    blocks.create("nameless", [], 1, **{BLOCK_ID_ANNOTATION: ""})
    blocks.create("odd-labels", [], 1, **{LABELS_ANNOTATION: "gold"})
    blocks.create("twin", [], 1, **{BLOCK_ID_ANNOTATION: "odd-labels"})
    wait_for(lambda: "another one has its block id odd-labels" in server.errors())
    assert "Service nameless: has no annotation splitstack.dev/block-id" in server.errors()
    assert "Service odd-labels: annotation splitstack.dev/labels must be" in server.errors()
    assert known(server)["odd-labels"]["labels"] == {}
    assert "no replica that is ready" in known(server)["odd-labels"]["reason"]
    for name in ("nameless", "odd-labels", "twin"):
        blocks.delete(name)


def test_a_cut_connection_to_the_api_server_loses_nothing(
    server: TierProcess, blocks: Blocks, network: TcpProxy, proxy: TierProcess
) -> None:
    blocks.create("before", [{"addresses": [own_address()]}], proxy.port)
    wait_for(lambda: known(server).get("before", {}).get("healthy"))
    target, network.target = network.target, ("127.0.0.1", free_ports(1)[0])
    assert network.cut() >= 2
    wait_for(lambda: "the Kubernetes API does not answer" in server.errors())
    blocks.create("meanwhile", [], 1)
    assert infer(server, "before").status_code == 200
    assert "meanwhile" not in known(server)
    network.target = target
    wait_for(lambda: "meanwhile" in known(server))
    assert "the Kubernetes API answers again" in server.errors()
    for name in ("before", "meanwhile"):
        blocks.delete(name)
    wait_for(lambda: not known(server))


def test_without_access_the_process_is_not_ready_and_says_why(tmp_path: Path) -> None:
    spec = InferenceServerSpec(DEPLOYMENT, (), discovery_namespace=NAMESPACE)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("KUBECONFIG", str(tmp_path / "nothing"))
        process = TierProcess("inference_server", spec, tmp_path)
    with process:
        wait_for(lambda: "no access" in httpx.get(f"{process.url}/readyz?self").text)
        assert httpx.get(f"{process.url}/readyz?self").status_code == 503
