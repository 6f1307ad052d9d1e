"""The logs of a stack's pods in its clusters, each line with the pod that wrote it."""

from __future__ import annotations

import contextlib
import math
import queue
import re
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
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
_TIME = re.compile(r"\d{4}-\d\d-\d\dT")
# What two clocks and a line on its way may differ; lines that were read are dropped by their time.
_BEFORE_S = 30


@dataclass(frozen=True)
class _Source:
    """One container as it runs now: `start` tells it from the one that it follows. `runs`: it has
    not ended."""

    cluster: ClusterClient
    namespace: str
    pod: str
    container: str
    start: str
    runs: bool = field(compare=False)

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
            for line in _read(source):
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
    known: dict[_Source, _Pump] = {}
    while True:
        for source in sources:
            pump = known.get(source)
            if pump is None or pump.was_cut(source):
                known[source] = _Pump(source, lines, pump.position if pump else _Position())
        look_at = time.monotonic() + _LOOK_S
        with contextlib.suppress(queue.Empty):
            while (left_s := look_at - time.monotonic()) > 0:
                yield lines.get(timeout=left_s)
        # An API server that does not answer for a while costs the new pods of that while.
        with contextlib.suppress(ClusterError):
            sources = list(_sources(clusters, deployment, names))


@dataclass
class _Position:
    """How far a container's log has been read: the time that its last line has there, how many
    have that time, and when they were heard of, on this machine's clock."""

    line: str = ""
    alike: int = 0
    heard: float = 0.0

    def pass_on(self, written: str) -> None:
        """A line of that time has been read."""
        self.alike = self.alike + 1 if written == self.line else 1
        self.line, self.heard = written, time.monotonic()


class _Pump:
    """Reads one container's log into `lines` until the stream ends."""

    def __init__(self, source: _Source, lines: queue.SimpleQueue[str], position: _Position) -> None:
        self.position, self._lines, self._source = position, lines, source
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def was_cut(self, now: _Source) -> bool:
        """The stream has ended, and the container, as it is `now`, has not."""
        return now.runs and not self._thread.is_alive()

    def _run(self) -> None:
        known, alike = self.position.line, self.position.alike
        with contextlib.suppress(ClusterError):
            for line in _read(self._source, self.position):
                written, _, text = line.partition(" ")
                if not _TIME.match(written):  # the kubelet's own word of the stream
                    self._lines.put(f"{self._source.label} {line}")
                    continue
                if written < known:
                    continue
                if written == known and alike:
                    alike -= 1
                    continue
                self.position.pass_on(written)
                self._lines.put(f"{self._source.label} {text}")


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
                    runs = status.state is not None and status.state.running is not None
                    yield _Source(cluster, namespace, name, status.name, start, runs)


def _start(status: Any) -> str:
    """When the container began that has a log now; "" for one that never has."""
    for state in (status.state and status.state.running, status.state and status.state.terminated):
        if state is not None:
            return str(state.started_at)
    return ""


def _read(source: _Source, after: _Position | None = None) -> Iterator[str]:
    """The last lines; with a position those from about there, each behind its time, and then as
    they come. Raises ClusterError."""
    core = client.CoreV1Api(source.cluster.api)
    lines: dict[str, Any] = {"tail_lines": _TAIL_LINES}
    if after is not None:
        lines = {"follow": True, "timestamps": True, **lines}
        if after.line:
            del lines["tail_lines"]
            lines["since_seconds"] = math.ceil(time.monotonic() - after.heard) + _BEFORE_S
    with source.cluster.asked_to(f"read the log of {source.label}"):
        response: Any = core.read_namespaced_pod_log(
            source.pod,
            source.namespace,
            container=source.container,
            _preload_content=False,
            # The stream itself has no end while the container runs.
            _request_timeout=None if after is not None else REQUEST_TIMEOUT,
            **lines,
        )
        rest = b""
        with contextlib.closing(response), contextlib.suppress(urllib3.exceptions.ProtocolError):
            for part in response.stream():
                *whole, rest = (rest + part).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in whole)
            if rest:  # not of a stream that was cut: the whole line comes again
                yield rest.decode("utf-8", "replace")
