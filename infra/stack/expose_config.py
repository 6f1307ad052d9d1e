"""How the inference server is reached from outside of the cluster."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from infra.stack import types


class Expose(types.Section):
    """How the inference server is reached from outside of the cluster; one machine has no use."""

    mode: Literal["node_port", "load_balancer", "ingress", "gateway", "none"] = "node_port"
    """A port of every node, a load balancer, an Ingress, an HTTPRoute; none: port-forward only."""
    host: types.HostName = ""
    """Host name of the Ingress or HTTPRoute, which its DNS record has to lead to."""
    class_name: types.ControllerClass = ""
    """Class of the Ingress or load balancer; of a Gateway of this stack's own."""
    gateway: types.NamespacedName = ""
    """NAMESPACE/NAME of a Gateway that is there, which speaks HTTPS; empty: one of class_name."""
    port: types.Port = 80
    """Port of the load balancer; 443 where its annotations have it end TLS."""
    annotations: dict[types.Key, types.Text] = Field(default_factory=dict)
    """Annotations of the Service, Ingress or HTTPRoute, and of a Gateway of our own."""
    tls_secret: types.ClassName = ""
    """Secret in namespaces.inference_server with the certificate; of an Ingress or our Gateway."""
    client_namespace: types.OptionalLabel = ""
    """Namespace that alone may reach it, as the Ingress controller's; empty: anybody."""
