"""The logs of a stack's pods in its clusters, each line with the pod that wrote it."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import urllib3.exceptions
from kubernetes import client

from infra.cluster.fit import rank_clusters
from infra.inspection.client import REQUEST_TIMEOUT, ClusterClient, ClusterError, open_cluster
from infra.inspection.own_pods import own_pods
from infra.stack.config import DeploymentConfig

# How often it is looked for pods and containers that have come since.
_LOOK_S = 2.0
_TAIL_LINES = 200


@dataclass(frozen=True)
class _Source:
    """One container as it runs now: `start` tells it from the one that it follows."""

    cluster: ClusterClient
    namespace: str
    pod: str
    container: str
    start: str

    @property
    def label(self) -> str:
        return f"{self.pod}/{self.container}"


def pod_log_lines(
    deployment: DeploymentConfig, names: Collection[str], *, follow: bool
) -> Iterator[str]:
    """The last lines of every container, then with `follow` each line as it comes, until the
    caller stops. `names`: pods, or beginnings of their names; none: all.

    Raises ClusterError where a cluster cannot be asked or has no such pod.
    """
    clusters = [open_cluster(deployment, cluster_id) for cluster_id in rank_clusters(deployment)]
    sources = list(_sources(clusters, deployment, names))
    if not sources:
        wanted = f" named {', '.join(names)}" if names else ""
        raise ClusterError(f"{deployment.deployment_name} has no pod{wanted} that has begun")
    if not follow:
        for source in sources:
            for line in _read(source, follow=False):
                yield f"{source.label} {line}"
        return
    yield from _followed(clusters, deployment, names, sources)


def _followed(
    clusters: list[ClusterClient],
    deployment: DeploymentConfig,
    names: Collection[str],
    sources: list[_Source],
) -> Iterator[str]:
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    known: set[_Source] = set()
    while True:
        for source in sources:
            if source not in known:
                known.add(source)
                threading.Thread(target=_pump, args=(source, lines), daemon=True).start()
        look_at = time.monotonic() + _LOOK_S
        with contextlib.suppress(queue.Empty):
            while (left_s := look_at - time.monotonic()) > 0:
                yield lines.get(timeout=left_s)
        # An API server that does not answer for a while costs the new pods of that while.
        with contextlib.suppress(ClusterError):
            sources = list(_sources(clusters, deployment, names))


def _pump(source: _Source, lines: queue.SimpleQueue[str]) -> None:
    with contextlib.suppress(ClusterError):
        for line in _read(source, follow=True):
            lines.put(f"{source.label} {line}")


def _sources(
    clusters: list[ClusterClient], deployment: DeploymentConfig, names: Collection[str]
) -> Iterator[_Source]:
    for cluster in clusters:
        for pod in own_pods(cluster, deployment):
            name, namespace = pod.metadata.name, pod.metadata.namespace
            if names and not name.startswith(tuple(names)):
                continue
            for status in pod.status.container_statuses or []:
                if start := _start(status):
                    yield _Source(cluster, namespace, name, status.name, start)


def _start(status: Any) -> str:
    """When the container began that has a log now; "" for one that never has."""
    for state in (status.state and status.state.running, status.state and status.state.terminated):
        if state is not None:
            return str(state.started_at)
    return ""


def _read(source: _Source, *, follow: bool) -> Iterator[str]:
    core = client.CoreV1Api(source.cluster.api)
    with source.cluster.asked_to(f"read the log of {source.label}"):
        response: Any = core.read_namespaced_pod_log(
            source.pod,
            source.namespace,
            container=source.container,
            follow=follow,
            tail_lines=_TAIL_LINES,
            _preload_content=False,
            # The stream itself has no end while the container runs.
            _request_timeout=None if follow else REQUEST_TIMEOUT,
        )
        rest = b""
        with contextlib.closing(response), contextlib.suppress(urllib3.exceptions.ProtocolError):
            for part in response.stream():
                *whole, rest = (rest + part).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in whole)
        if rest:
            yield rest.decode("utf-8", "replace")
