"""At which URL the inference server is reached from outside of the cluster. Pure."""

from __future__ import annotations

import shlex

import pulumi

from contract.specs import INFERENCE_PORT
from infra.stack.config import DeploymentConfig

_LOOPBACK = "127.0.0.1"
# Of a load balancer that nobody has made; `pulumi up --refresh` asks again.
_NO_ADDRESS = "no-address-yet"


def front_url(
    deployment: DeploymentConfig, node: str, balancer: pulumi.Input[str]
) -> pulumi.Input[str]:
    """`node` is the address of one, "" where it is not known; `balancer` the load balancer's."""
    server, expose = deployment.inference_server, deployment.inference_server.expose
    if needs_forward(deployment, node):
        return _url("http", _LOOPBACK, INFERENCE_PORT)
    if expose.mode == "node_port":
        return _url("http", server.public_host or node, server.node_port)
    if expose.mode == "load_balancer":
        scheme, port = ("https", None) if expose.port == 443 else ("http", expose.port)
        if server.public_host:
            return _url(scheme, server.public_host, port)
        address = pulumi.Output.from_input(balancer)
        return address.apply(lambda host: _url(scheme, host or _NO_ADDRESS, port))
    return _url("https" if expose.tls_secret or expose.gateway else "http", expose.host)


def needs_forward(deployment: DeploymentConfig, node: str) -> bool:
    """Whether it is reached by `forward_line` only."""
    server = deployment.inference_server
    known = server.public_host or node
    return server.expose.mode == "none" or (server.expose.mode == "node_port" and not known)


def forward_line(deployment: DeploymentConfig) -> str:
    """Runs until it is ended; meanwhile the inference server is at a port of this machine."""
    cluster = deployment.clusters[deployment.cluster_of(0)]
    command = ["kubectl"]
    if cluster.kubeconfig:
        command += ["--kubeconfig", cluster.kubeconfig]
    if cluster.context:
        command += ["--context", cluster.context]
    command += ["port-forward", "-n", deployment.namespaces.inference_server]
    command += [f"service/{deployment.inference_server_name}", str(INFERENCE_PORT)]
    return shlex.join(command)


def _url(scheme: str, host: str, port: int | None = None) -> str:
    host = f"[{host}]" if ":" in host else host
    plain = port is None or (scheme, port) == ("http", 80)
    return f"{scheme}://{host}" if plain else f"{scheme}://{host}:{port}"
