"""Rules of the inference server that join several keys. Functions yield Faults; none raises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from contract.faults import Fault
from infra.stack.config import DeploymentConfig
from infra.stack.expose_config import Expose
from infra.stack.pod_rules import OWN_DOMAINS

_KEYS_OF_MODES = {
    "host": ("ingress", "gateway"),
    "class_name": ("load_balancer", "ingress", "gateway"),
    "gateway": ("gateway",),
    "annotations": ("node_port", "load_balancer", "ingress", "gateway"),
    "tls_secret": ("ingress", "gateway"),
    # Clients from outside come from no namespace.
    "client_namespace": ("ingress", "gateway", "none"),
}


def front_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    """Faults that matter on one machine and on clusters alike."""
    for name, shares in deployment.inference_server.aliases.items():
        yield from _alias_faults(deployment, name, shares)


def _alias_faults(
    deployment: DeploymentConfig, name: str, shares: Mapping[str, int]
) -> Iterator[Fault]:
    path = f"inference_server.aliases.{name}"
    own = [block.block_id for block in deployment.proxy_blocks]
    if name in own:
        yield Fault(path, dict(shares), "is the id of a block of this stack; take another name")
    if not any(shares.values()):
        rule = "must give a block a share above 0, as in {block_id: 1}: it stands for nothing"
        yield Fault(path, dict(shares), rule)
    for block_id, share in shares.items():
        if block_id == name and name not in own:
            yield Fault(f"{path}.{block_id}", share, "names itself; an alias names blocks")
        elif block_id in deployment.inference_server.aliases and block_id != name:
            yield Fault(f"{path}.{block_id}", share, "is an alias too; an alias names blocks")
        elif deployment.inference_server.discovery == "static" and block_id not in own:
            rule = (
                f"is no block of this stack ({', '.join(own) or 'none'}); others are found with "
                "inference_server.discovery kubernetes only"
            )
            yield Fault(f"{path}.{block_id}", share, rule)


def cluster_front_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    """Faults that matter on clusters only."""
    server, expose = deployment.inference_server, deployment.inference_server.expose
    if not server.enabled:
        return
    if expose.mode == "node_port" and not 30000 <= server.node_port <= 32767:
        rule = "must be from 30000 to 32767 in a cluster"
        yield Fault("inference_server.node_port", server.node_port, rule)
    if server.public_host and expose.mode not in ("node_port", "load_balancer"):
        rule = f"is refused with expose.mode {expose.mode}"
        if expose.mode != "none":
            rule += "; expose.host is the name by which clients reach it"
        yield Fault("inference_server.public_host", server.public_host, rule)
    for key, rule in _misfits(expose):
        yield Fault(f"inference_server.expose.{key}", getattr(expose, key), rule)
    for name, value in expose.annotations.items():
        if name.partition("/")[0] in OWN_DOMAINS:
            rule = "is an annotation of this stack's own, which must not be another"
            yield Fault(f"inference_server.expose.annotations.{name}", value, rule)


def _misfits(expose: Expose) -> Iterator[tuple[str, str]]:
    """(key, rule) of each key that the mode has no use for, or lacks."""
    for key, modes in _KEYS_OF_MODES.items():
        if getattr(expose, key) and expose.mode not in modes:
            yield key, f"is refused with mode {expose.mode}; it is for {', '.join(modes)}"
    routed = expose.mode in ("ingress", "gateway")
    if routed and not expose.host:
        rule = "else every name that leads to the controller would come here"
        yield "host", f"is required with mode {expose.mode}: {rule}"
    if expose.mode != "gateway":
        return
    if not expose.gateway and not expose.class_name:
        rule = "as in gateways/public, or class_name for a Gateway of this stack's own"
        yield "gateway", f"is required with mode gateway, {rule}"
    for key in ("class_name", "tls_secret") if expose.gateway else ():
        if getattr(expose, key):
            yield key, "is refused beside gateway, which has its own"
