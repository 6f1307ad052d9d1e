"""How the inference server is reached: the objects of each mode, who may come, and the URL."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml

from tests.infra.program_stacks import stack
from tests.infra.recorded_program import Program, run_program, write_kubeconfig

NAME = "small-inference-server"
BACKEND = {"service": {"name": NAME, "port": {"name": "http"}}}


def exposed(folder: Path, server: dict[str, Any] | None = None, **expose: Any) -> Program:
    return run_program(stack(folder, inference_server={**(server or {}), "expose": expose}))


def service_of(found: Program) -> dict[str, Any]:
    return found.one("Service", NAME).manifest


def url_of(found: Program) -> str:
    url = str(found.outputs["urls"]["inference_server"])
    assert found.outputs["curl"].startswith(f"curl -X POST {url}/v1/infer ")
    return url


def fault_of(folder: Path, server: dict[str, Any] | None = None, **expose: Any) -> str:
    with pytest.raises(pulumi.RunError) as raised:
        exposed(folder, server, **expose)
    (line,) = str(raised.value).splitlines()[1:]
    return line.strip().removeprefix("inference_server.")


@contextmanager
def api_server(folder: Path, answers: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Clusters of a stack file; what is not among `answers` is not found."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            body = json.dumps(answers.get(path, {"kind": "Status", "status": "Failure"})).encode()
            self.send_response(200 if path in answers else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    path = write_kubeconfig(folder, "served")
    document = yaml.safe_load(path.read_text())
    document["clusters"][0]["cluster"]["server"] = f"http://127.0.0.1:{server.server_port}"
    path.write_text(yaml.safe_dump(document))
    try:
        yield {"home": {"kubeconfig": str(path)}}
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def node(name: str, ready: str, **addresses: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "status": {
            "conditions": [
                {
                    "type": "Ready", "status": ready, "reason": "x", "message": "x",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                    "lastHeartbeatTime": "2026-01-01T00:00:00Z",
                }
            ],
            "addresses": [{"type": kind, "address": item} for kind, item in addresses.items()],
        },
    }  # fmt: skip


def test_a_port_of_every_node_is_at_a_nodes_address(tmp_path):
    nodes = [
        node("a", "False", ExternalIP="203.0.113.9"),
        node("b", "True", InternalIP="10.0.0.2", Hostname="b"),
        node("c", "True", InternalIP="10.0.0.3", ExternalIP="203.0.113.3"),
    ]
    answers = {"/api/v1/nodes": {"kind": "NodeList", "apiVersion": "v1", "items": nodes}}
    with api_server(tmp_path, answers) as clusters:
        found = run_program(stack(tmp_path, clusters=clusters))
        assert url_of(found) == "http://203.0.113.3:31504"
        server = {"public_host": "serve.test"}
        found = run_program(stack(tmp_path, clusters=clusters, inference_server=server))
        assert url_of(found) == "http://serve.test:31504"
    assert "port_forward" not in found.outputs


@pytest.mark.parametrize("expose", [{}, {"mode": "none"}])
def test_without_an_address_there_is_the_port_forward_line(tmp_path, expose):
    found = exposed(tmp_path, **expose)
    assert url_of(found) == "http://127.0.0.1:31504"
    kubeconfig = tmp_path / "home.kubeconfig"
    assert found.outputs["port_forward"] == (
        f"kubectl --kubeconfig {kubeconfig} port-forward -n inference-server service/{NAME} 31504"
    )


def test_none_is_reached_within_the_cluster_only(tmp_path):
    spec = service_of(exposed(tmp_path, mode="none"))["spec"]
    assert spec["type"] == "ClusterIP"
    assert "nodePort" not in spec["ports"][0]


def test_a_load_balancer_is_waited_for_and_asked_for_its_address(tmp_path):
    annotations = {"service.beta.kubernetes.io/aws-load-balancer-scheme": "internet-facing"}
    expose = {"mode": "load_balancer", "class_name": "service.k8s.aws/nlb"}
    found = exposed(tmp_path, **expose, annotations=annotations)
    service = service_of(found)
    assert service["spec"]["type"] == "LoadBalancer"
    assert service["spec"]["loadBalancerClass"] == "service.k8s.aws/nlb"
    assert service["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    assert service["metadata"]["annotations"] == annotations, "it is not skipped"
    assert all(found.one("Service", NAME).timeouts)
    found = exposed(tmp_path, {"public_host": "chat.test"}, mode="load_balancer", port=443)
    assert url_of(found) == "https://chat.test"
    found = exposed(tmp_path, {"public_host": "chat.test"}, mode="load_balancer", port=8000)
    assert url_of(found) == "http://chat.test:8000"


def test_an_ingress(tmp_path):
    expose = {"mode": "ingress", "host": "chat.test", "class_name": "nginx"}
    found = exposed(tmp_path, **expose)
    spec = found.one("Ingress", NAME).manifest["spec"]
    path = {"path": "/", "pathType": "Prefix", "backend": BACKEND}
    assert spec == {
        "ingressClassName": "nginx", "rules": [{"host": "chat.test", "http": {"paths": [path]}}]
    }  # fmt: skip
    assert service_of(found)["spec"]["type"] == "ClusterIP"
    assert url_of(found) == "http://chat.test"
    annotations = {"nginx.ingress.kubernetes.io/proxy-read-timeout": 600}
    found = exposed(tmp_path, **expose, tls_secret="chat-tls", annotations=annotations)
    ingress = found.one("Ingress", NAME).manifest
    assert ingress["spec"]["tls"] == [{"hosts": ["chat.test"], "secretName": "chat-tls"}]
    kept = {"nginx.ingress.kubernetes.io/proxy-read-timeout": "600"}
    assert ingress["metadata"]["annotations"] == {"pulumi.com/skipAwait": "true"} | kept
    assert service_of(found)["metadata"]["annotations"] == {"pulumi.com/skipAwait": "true"}
    assert url_of(found) == "https://chat.test"


def test_a_route_of_a_gateway_that_is_there(tmp_path):
    found = exposed(tmp_path, mode="gateway", host="chat.test", gateway="edge/public")
    route = found.one("HTTPRoute", NAME).manifest
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert route["spec"] == {
        "parentRefs": [{"name": "public", "namespace": "edge"}],
        "hostnames": ["chat.test"],
        "rules": [{"backendRefs": [{"name": NAME, "port": 31504}]}],
    }
    assert not found.of_kind("Gateway")
    assert url_of(found) == "https://chat.test"


def test_a_gateway_of_our_own(tmp_path):
    expose = {"mode": "gateway", "host": "chat.test", "class_name": "istio"}
    found = exposed(tmp_path, **expose, tls_secret="chat-tls")
    assert found.one("HTTPRoute", NAME).manifest["spec"]["parentRefs"] == [{"name": NAME}]
    spec = found.one("Gateway", NAME).manifest["spec"]
    assert spec["gatewayClassName"] == "istio"
    (listener,) = spec["listeners"]
    assert (listener["protocol"], listener["port"]) == ("HTTPS", 443)
    assert listener["tls"] == {"mode": "Terminate", "certificateRefs": [{"name": "chat-tls"}]}
    assert url_of(found) == "https://chat.test"
    plain = exposed(tmp_path, **expose)
    (listener,) = plain.one("Gateway", NAME).manifest["spec"]["listeners"]
    assert (listener["protocol"], listener["port"]) == ("HTTP", 80)
    assert url_of(plain) == "http://chat.test"


def policy_of(found: Program) -> Any:
    name = "small-inference-server-inference-server"
    return found.one("NetworkPolicy", name).manifest["spec"]["ingress"]


def namespaces_of(rules: Any) -> set[str]:
    """ "" is anybody."""
    label = "kubernetes.io/metadata.name"
    return {
        peer["namespaceSelector"]["matchLabels"][label]
        for rule in rules
        for peer in rule.get("from", [{"namespaceSelector": {"matchLabels": {label: ""}}}])
    }


def test_policies_follow(tmp_path):
    assert namespaces_of(policy_of(exposed(tmp_path))) == {""}
    ingress = {"mode": "ingress", "host": "chat.test"}
    assert namespaces_of(policy_of(exposed(tmp_path, **ingress))) == {""}
    only = exposed(tmp_path, **ingress, client_namespace="ingress-nginx")
    assert namespaces_of(policy_of(only)) == {"ingress-nginx", "monitoring", "splits"}
    assert namespaces_of(policy_of(exposed(tmp_path, mode="none"))) == {"monitoring", "splits"}
    app = exposed(tmp_path, mode="none", client_namespace="my-app")
    assert namespaces_of(policy_of(app)) == {"my-app", "monitoring", "splits"}


@pytest.mark.parametrize(
    ("server", "expose", "told"),
    [
        ({}, {"mode": "ingress"}, "expose.host = '': is required with mode ingress"),
        ({}, {"mode": "gateway", "class_name": "x"}, "expose.host = '': is required with mode gat"),
        ({}, {"host": "chat.test"}, "expose.host = 'chat.test': is refused with mode node_port"),
        ({}, {"mode": "gateway", "host": "a.b"}, "expose.gateway = '': is required with mode gat"),
        (
            {},
            {"mode": "gateway", "host": "a.b", "gateway": "a/b", "class_name": "x"},
            "expose.class_name = 'x': is refused beside gateway",
        ),
        (
            {},
            {"mode": "gateway", "host": "a.b", "gateway": "a/b", "tls_secret": "x"},
            "expose.tls_secret = 'x': is refused beside gateway",
        ),
        ({}, {"mode": "load_balancer", "tls_secret": "x"}, "expose.tls_secret = 'x': is refused w"),
        ({}, {"mode": "none", "annotations": {"a": "b"}}, "expose.annotations = {'a': 'b'}: is re"),
        ({}, {"class_name": "x"}, "expose.class_name = 'x': is refused with mode node_port"),
        ({}, {"client_namespace": "x"}, "expose.client_namespace = 'x': is refused with mode nod"),
        (
            {},
            {"annotations": {"pulumi.com/skipAwait": "false"}},
            "expose.annotations.pulumi.com/skipAwait = 'false': is an annotation of this stack's",
        ),
        (
            {},
            {"annotations": {"splitstack.dev/block-id": "x"}},
            "expose.annotations.splitstack.dev/block-id = 'x': is an annotation of this stack's",
        ),
        (
            {"public_host": "a.b"},
            {"mode": "none"},
            "public_host = 'a.b': is refused with expose.mode none",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, server, expose, told):
    assert fault_of(tmp_path, server, **expose).startswith(told)


def test_a_certificate_that_is_not_there_is_said_in_the_preview(tmp_path):
    expose = {"mode": "ingress", "host": "chat.test", "tls_secret": "chat-tls"}
    secret = {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "chat-tls"}}
    path = "/api/v1/namespaces/inference-server/secrets/chat-tls"
    said = []
    for answers in ({}, {path: secret}):
        with api_server(tmp_path, answers) as clusters:
            mapping = stack(tmp_path, clusters=clusters, inference_server={"expose": expose})
            messages = run_program(mapping, preview=True).messages
            said.append([one for one in messages if "expose.tls_secret" in one])
    assert len(said[0]) == 1
    assert "there is no Secret chat-tls in namespace inference-server" in said[0][0]
    assert said[1] == []
