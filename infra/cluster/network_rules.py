"""Which pods of a deployment may talk to which. Pure.

Denied is what no rule allows, for the pods of our own instance only. Probes come from the pod's
own node, which network policies do not stop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from contract.specs import INFERENCE_PORT, MASTER_HTTP_PORT, STAGE_DATA_PORT, STAGE_HEALTH_PORT
from contract.web_model import is_address
from infra.cluster import labels
from infra.cluster.fit import rank_clusters, stack_places
from infra.plan.model_config import is_hub_id
from infra.stack.config import DeploymentConfig
from infra.stack.session_url import SESSION_STORE_PORT

DNS_PORT = 53
HTTPS_PORT = 443
# Where the API server is behind its Service; which of the two counts differs between networks.
API_SERVER_PORTS = (HTTPS_PORT, 6443)
# The hub is reached through these where the ranks' environment has them.
_HUB_VARIABLES = (
    *("HF_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    *("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"),
)
_DEFAULT_PORTS = {"http": 80, "https": HTTPS_PORT, "socks5": 1080}


@dataclass(frozen=True)
class Peer:
    """Pods with `pod_labels` in `namespace`; without labels every pod there."""

    namespace: str
    pod_labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Allowed:
    """Connections to `ports`; `peers` () is anybody, `ports` () every port."""

    ports: tuple[int, ...]
    peers: tuple[Peer, ...] = ()
    protocols: tuple[str, ...] = ("TCP",)


@dataclass(frozen=True)
class NetworkRule:
    """What the pods that `selected` picks in one namespace may accept and open."""

    name: str
    cluster: str
    namespace: str
    selected: dict[str, str]
    ingress: tuple[Allowed, ...] = ()
    egress: tuple[Allowed, ...] = ()


def network_rules(deployment: DeploymentConfig) -> Iterator[NetworkRule]:
    """Every rule of a deployment; those named default come once for each of its namespaces."""
    yield from _defaults(deployment)
    for cluster in rank_clusters(deployment):
        yield _ranks(deployment, cluster)
    yield _rank_master(deployment)
    yield _rollout(deployment)
    if deployment.proxy_blocks:
        yield _proxy_blocks(deployment)
        if deployment.session_store.mode == "valkey":
            yield _session_store(deployment)
    if deployment.inference_server.enabled:
        yield _inference_server(deployment)


def _defaults(deployment: DeploymentConfig) -> Iterator[NetworkRule]:
    for cluster, namespace in stack_places(deployment):
        # Any address: a node's own DNS cache is in no namespace.
        names = Allowed((DNS_PORT,), protocols=("UDP", "TCP"))
        selected = labels.selector(deployment, "")
        yield NetworkRule("default", cluster, namespace, selected, egress=(names,))


def _ranks(deployment: DeploymentConfig, cluster: str) -> NetworkRule:
    ranks = _own(deployment, deployment.namespace, labels.RANK_COMPONENT)
    # Addresses of other clusters and networks are no pods that a policy could select.
    peers = () if _spread(deployment) else (ranks,)
    master_port = deployment.common_params.master_port
    # Other engines' processes meet on ports that they choose; several clusters are refused there.
    every_port = deployment.platform == "vllm"
    egress = [Allowed(() if every_port else (master_port, STAGE_DATA_PORT), peers)]
    if ports := _hub_ports(deployment):
        egress.append(Allowed(ports))
    return NetworkRule(
        "ranks",
        cluster,
        deployment.namespace,
        labels.selector(deployment, labels.RANK_COMPONENT),
        ingress=(
            Allowed(() if every_port else (STAGE_DATA_PORT,), peers),
            *_metrics(deployment, STAGE_HEALTH_PORT),
        ),
        egress=tuple(egress),
    )


def _rank_master(deployment: DeploymentConfig) -> NetworkRule:
    ranks = _own(deployment, deployment.namespace, labels.RANK_COMPONENT)
    proxies = _own(deployment, deployment.namespaces.blocks, labels.PROXY_BLOCK)
    rollout = _own(deployment, deployment.namespace, labels.ROLLOUT)
    peers = () if _spread(deployment) else (ranks,)
    return NetworkRule(
        "rank-master",
        deployment.cluster_of(0),
        deployment.namespace,
        labels.selector(deployment, labels.RANK_COMPONENT, 0),
        ingress=(
            Allowed((deployment.common_params.master_port,), peers),
            Allowed((MASTER_HTTP_PORT,), (proxies, rollout)),
            *_metrics(deployment, MASTER_HTTP_PORT),
        ),
    )


def _rollout(deployment: DeploymentConfig) -> NetworkRule:
    """To the master, and to the outermost tier, which it asks."""
    rank_0 = labels.selector(deployment, labels.RANK_COMPONENT, 0)
    egress = [Allowed((MASTER_HTTP_PORT,), (Peer(deployment.namespace, tuple(rank_0.items())),))]
    if deployment.proxy_blocks and deployment.inference_server.enabled:
        namespace = deployment.namespaces.inference_server
        server = _own(deployment, namespace, labels.INFERENCE_SERVER)
        egress.append(Allowed((INFERENCE_PORT,), (server,)))
    elif deployment.proxy_blocks:
        blocks = _own(deployment, deployment.namespaces.blocks, labels.PROXY_BLOCK)
        egress.append(Allowed((deployment.proxy_blocks[0].port,), (blocks,)))
    return NetworkRule(
        "rollout",
        deployment.cluster_of(0),
        deployment.namespace,
        labels.selector(deployment, labels.ROLLOUT),
        egress=tuple(egress),
    )


def _proxy_blocks(deployment: DeploymentConfig) -> NetworkRule:
    ports = tuple(sorted({block.port for block in deployment.proxy_blocks}))
    # Another stack's inference server that discovers blocks serves these too.
    server = _any(deployment.namespaces.inference_server, labels.INFERENCE_SERVER)
    rank_0 = labels.selector(deployment, labels.RANK_COMPONENT, 0)
    rollout = _own(deployment, deployment.namespace, labels.ROLLOUT)
    peers = (server,) if deployment.inference_server.enabled else (server, rollout)
    egress = [Allowed((MASTER_HTTP_PORT,), (Peer(deployment.namespace, tuple(rank_0.items())),))]
    store = deployment.session_store
    if store.mode == "valkey":
        peer = _own(deployment, deployment.namespaces.blocks, labels.SESSION_STORE)
        egress.append(Allowed((SESSION_STORE_PORT,), (peer,)))
    elif store.mode == "url":
        egress.append(Allowed((_port_of(store.url) or SESSION_STORE_PORT,)))
    return NetworkRule(
        "proxy-block",
        deployment.cluster_of(0),
        deployment.namespaces.blocks,
        labels.selector(deployment, labels.PROXY_BLOCK),
        ingress=(Allowed(ports, peers), *_metrics(deployment, *ports)),
        egress=tuple(egress),
    )


def _session_store(deployment: DeploymentConfig) -> NetworkRule:
    proxies = _own(deployment, deployment.namespaces.blocks, labels.PROXY_BLOCK)
    return NetworkRule(
        "session-store",
        deployment.cluster_of(0),
        deployment.namespaces.blocks,
        labels.selector(deployment, labels.SESSION_STORE),
        ingress=(Allowed((SESSION_STORE_PORT,), (proxies,)),),
    )


def _inference_server(deployment: DeploymentConfig) -> NetworkRule:
    blocks = deployment.namespaces.blocks
    ports = tuple(sorted({block.port for block in deployment.proxy_blocks}))
    if deployment.inference_server.discovery == "kubernetes":
        # The blocks of every stack, on whatever port their Services name.
        egress = [Allowed((), (_any(blocks, labels.PROXY_BLOCK),)), Allowed(API_SERVER_PORTS)]
    else:
        egress = [Allowed(ports, (_own(deployment, blocks, labels.PROXY_BLOCK),))]
    return NetworkRule(
        "inference-server",
        deployment.cluster_of(0),
        deployment.namespaces.inference_server,
        labels.selector(deployment, labels.INFERENCE_SERVER),
        ingress=_clients(deployment),
        egress=tuple(egress),
    )


def _clients(deployment: DeploymentConfig) -> tuple[Allowed, ...]:
    """Of the inference server. What a port-forward brings comes from the pod's own node."""
    expose = deployment.inference_server.expose
    if expose.mode != "none" and not expose.client_namespace:
        return (Allowed((INFERENCE_PORT,)),)
    clients = (Peer(expose.client_namespace),) if expose.client_namespace else ()
    rollout = _own(deployment, deployment.namespace, labels.ROLLOUT)
    return (Allowed((INFERENCE_PORT,), (*clients, rollout)), *_metrics(deployment, INFERENCE_PORT))


def _metrics(deployment: DeploymentConfig, *ports: int) -> tuple[Allowed, ...]:
    namespace = deployment.network_policies.metrics_namespace
    return (Allowed(ports, (Peer(namespace),)),) if namespace else ()


def _own(deployment: DeploymentConfig, namespace: str, component: str) -> Peer:
    return Peer(namespace, tuple(labels.selector(deployment, component).items()))


def _any(namespace: str, component: str) -> Peer:
    return Peer(namespace, ((labels.NAME, labels.PROJECT), (labels.COMPONENT, component)))


def _spread(deployment: DeploymentConfig) -> bool:
    """Whether ranks meet at addresses other than those of pods of one cluster."""
    advertised = any(params.advertise_address for params in deployment.ranks)
    return advertised or len(rank_clusters(deployment)) > 1


def _hub_ports(deployment: DeploymentConfig) -> tuple[int, ...]:
    """Ports at which ranks reach the hub, or the address that the model has; empty where it is in
    the image or a volume."""
    model = deployment.common_params.model_name
    if not is_hub_id(model) and not is_address(model):
        return ()
    variables = deployment.extra_env.items()
    urls = [value for name, value in variables if name.upper() in _HUB_VARIABLES]
    ports = {_port_or_default(url) for url in (*urls, *([model] if is_address(model) else []))}
    return tuple(sorted(ports | (set() if is_address(model) else {HTTPS_PORT})))


def _port_or_default(url: str) -> int:
    return _port_of(url) or _DEFAULT_PORTS.get(url.partition("://")[0].lower(), HTTPS_PORT)


def _port_of(url: str) -> int | None:
    try:
        return urlsplit(url).port
    except ValueError:
        return None
