"""What a deployment looks like in its clusters: `splitstack status` of a stack with `clusters`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from kubernetes import client

from infra.cluster.fit import rank_clusters
from infra.cluster.labels import (
    BLOCK,
    COMPONENT,
    INFERENCE_SERVER,
    PROXY_BLOCK,
    RANK,
    RANK_COMPONENT,
    ROLLOUT,
    SESSION_STORE,
)
from infra.inspection.client import ClusterClient, ClusterError, open_cluster
from infra.inspection.diagnosis import NOT_READY, Pod, diagnose, is_ready
from infra.inspection.edit_status import (
    DONE,
    EditStatus,
    edit_status,
    edits_without_pods,
    newest,
)
from infra.inspection.master_word import MasterWord, ask_master
from infra.inspection.own_pods import own_pods, own_selector
from infra.plan.table import byte_size, table_lines
from infra.stack.config import DeploymentConfig

_HEADINGS = ("pod", "cluster", "node", "phase", "ready", "restarts")
_DEVICE_HEADINGS = ("device", "memory", "used")
_DROPS = ("cluster", "used", "node", "memory", "device")


@dataclass(frozen=True)
class PodStatus:
    """One pod; `rank` None for the tiers in front of the ranks. `reason` "": it is well. `block` is
    the block id of a proxy block's.

    `device` is the UUID of a rank's GPU as its process reports it, "" where there is none or the
    master does not tell; `device_bytes` is all memory of it, `used_bytes` what weights and KV take.
    """

    name: str
    component: str
    rank: int | None
    cluster: str
    namespace: str
    node: str
    phase: str
    ready: bool
    restarts: int
    reason: str
    log: tuple[str, ...] = ()
    device: str = ""
    device_bytes: int | None = None
    used_bytes: int | None = None
    block: str = ""


@dataclass(frozen=True)
class ClusterStatus:
    """Every rank, there or not, then the pods of the other tiers. `edit` is None where no rollout
    of an edit is there to ask; `master` is the master's own word, None where it does not answer."""

    stack: str
    deployment_name: str
    pods: tuple[PodStatus, ...]
    edit: EditStatus | None = None
    master: MasterWord | None = None

    @property
    def ready(self) -> bool:
        return all(pod.ready for pod in self.pods)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ready": self.ready}


def read_cluster_status(stack: str, deployment: DeploymentConfig) -> ClusterStatus:
    """Asks every cluster now; one that cannot be asked leaves its pods unknown, with the reason."""
    pods: list[PodStatus] = []
    edits: list[EditStatus] = []
    faults: dict[str, str] = {}
    master: MasterWord | None = None
    for cluster_id in rank_clusters(deployment):
        try:
            found, rollouts, word = _pods_of(open_cluster(deployment, cluster_id), deployment)
            pods, edits, master = pods + found, edits + rollouts, master or word
        except ClusterError as error:
            faults[cluster_id] = str(error)
    rows = (*_ranks(deployment, pods, faults), *_tiers(deployment, pods, faults))
    if master is not None:
        rows = tuple(_told_by_master(pod, master) for pod in rows)
    return ClusterStatus(stack, deployment.deployment_name, rows, newest(edits), master)


def render_cluster_status(status: ClusterStatus, width: int | None = None) -> str:
    """A line about the stack, a table of its pods, and what is wrong with each."""
    ready = sum(pod.ready for pod in status.pods)
    head = f"{status.deployment_name} (stack {status.stack}): {ready} of {len(status.pods)} ready"
    with_devices = any(pod.device for pod in status.pods)
    rows = [_HEADINGS + (_DEVICE_HEADINGS if with_devices else ())]
    rows += [_cells(pod, with_devices) for pod in status.pods]
    drops = [name for name in _DROPS if name in rows[0]]
    lines = table_lines(rows, width=width, drop=drops)
    if status.edit is not None and status.edit.phase != DONE:
        lines += ["", str(status.edit)]
    if status.master is not None and status.master.advice:
        lines += ["", f"note: {status.master.advice}"]
    alike = groupby((pod for pod in status.pods if pod.reason), lambda pod: (pod.reason, pod.log))
    for (reason, log), pods in alike:
        names = ", ".join(pod.name for pod in pods)
        lines += ["", f"{names}: {reason}", *(f"  | {line}" for line in log)]
    return "\n".join([head, "", *lines])


def _cells(pod: PodStatus, with_device: bool) -> tuple[str, ...]:
    cells = (
        pod.name,
        pod.cluster or "-",
        pod.node or "-",
        pod.phase,
        "yes" if pod.ready else "no",
        str(pod.restarts),
    )
    if not with_device:
        return cells
    return (*cells, pod.device or "-", byte_size(pod.device_bytes), byte_size(pod.used_bytes))


def _told_by_master(pod: PodStatus, master: MasterWord) -> PodStatus:
    """A rank with its device; rank 0 that is not ready with the master's own reason."""
    rank = pod.rank
    if rank is None:
        return pod
    if rank == 0 and pod.reason.startswith(NOT_READY) and master.reason:
        pod = replace(pod, reason=f"{pod.reason}: {master.reason}")
    device = master.devices.get(rank)
    if device is None or not device.uuid:
        return pod
    return replace(
        pod,
        device=device.uuid,
        device_bytes=device.memory_bytes,
        used_bytes=device.used_bytes,
    )


def _pods_of(
    cluster: ClusterClient, deployment: DeploymentConfig
) -> tuple[list[PodStatus], list[EditStatus], MasterWord | None]:
    core = client.CoreV1Api(cluster.api)
    pods: list[PodStatus] = []
    edits: list[EditStatus] = []
    master: MasterWord | None = None
    for pod in own_pods(cluster, deployment):
        with cluster.asked_to(f"look at pod {pod.metadata.name}"):
            status = _pod_status(cluster.cluster_id, core, pod)
            if status.component == ROLLOUT:
                edits.append(edit_status(core, pod))
                continue
            pods.append(status)
            if status.rank == 0:
                master = master or ask_master(core, pod)
    of_rollouts = f"{own_selector(deployment)},{COMPONENT}={ROLLOUT}"
    jobs = client.BatchV1Api(cluster.api)
    edits += edits_without_pods(jobs, deployment.namespace, of_rollouts, edits)
    return pods, edits, master


def _pod_status(cluster_id: str, core: client.CoreV1Api, pod: Pod) -> PodStatus:
    labels: Mapping[str, str] = pod.metadata.labels
    rank = labels.get(RANK, "")
    diagnosis = diagnose(core, pod)
    return PodStatus(
        name=pod.metadata.name,
        component=labels.get(COMPONENT, ""),
        rank=int(rank) if rank.isdecimal() else None,
        cluster=cluster_id,
        namespace=pod.metadata.namespace,
        node=pod.spec.node_name or "",
        phase=pod.status.phase or "Unknown",
        ready=is_ready(pod),
        restarts=sum(item.restart_count for item in pod.status.container_statuses or []),
        reason=diagnosis.reason,
        log=diagnosis.log,
        block=labels.get(BLOCK, ""),
    )


def _ranks(
    deployment: DeploymentConfig, pods: Sequence[PodStatus], faults: Mapping[str, str]
) -> Iterator[PodStatus]:
    """Every rank in order: its pod, or why there is none to show; then those beyond nnodes."""
    there = {(pod.cluster, pod.rank): pod for pod in pods}
    for rank in range(deployment.nnodes):
        cluster, name = deployment.cluster_of(rank), deployment.rank_name(rank)
        if pod := there.get((cluster, rank)):
            yield pod
        else:
            yield _absent(name, RANK_COMPONENT, deployment.namespace, cluster, faults, rank)
    for pod in pods:
        if pod.rank is not None and pod.rank >= deployment.nnodes:
            left = f"is left over, nnodes is {deployment.nnodes}: an edit goes on, or take it away "
            yield replace(pod, reason=f"{left}with: splitstack repair")


def _tiers(
    deployment: DeploymentConfig, pods: Sequence[PodStatus], faults: Mapping[str, str]
) -> Iterator[PodStatus]:
    """The pods of each Deployment of ours, or why there is none to show."""
    namespaces, cluster = deployment.namespaces, deployment.cluster_of(0)
    wanted = [
        (deployment.proxy_name(block.block_id), PROXY_BLOCK, block.block_id, namespaces.blocks)
        for block in deployment.proxy_blocks
    ]
    if deployment.inference_server.enabled:
        name = deployment.inference_server_name
        wanted.append((name, INFERENCE_SERVER, "", namespaces.inference_server))
    if deployment.has_valkey:
        wanted.append((deployment.session_store_name, SESSION_STORE, "", namespaces.blocks))
    for name, component, block, namespace in wanted:
        found = [pod for pod in pods if (pod.component, pod.block) == (component, block)]
        yield from found or [_absent(name, component, namespace, cluster, faults)]


def _absent(
    name: str,
    component: str,
    namespace: str,
    cluster: str,
    faults: Mapping[str, str],
    rank: int | None = None,
) -> PodStatus:
    fault = faults.get(cluster)
    return PodStatus(
        name=name,
        component=component,
        rank=rank,
        cluster=cluster,
        namespace=namespace,
        node="",
        phase="unknown" if fault else "missing",
        ready=False,
        restarts=0,
        reason=fault or "there is no such pod; bring it back with: pulumi up --refresh",
    )
