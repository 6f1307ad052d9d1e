"""What became of the last edit of a stack in a cluster: told by its rollout's pod, or its Job."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import urllib3.exceptions
from kubernetes import client

from infra.inspection.client import REQUEST_TIMEOUT
from infra.inspection.diagnosis import Pod, diagnose

RUNNING, DONE, FAILED = "running", "done", "failed"


@dataclass(frozen=True)
class EditStatus:
    """`reason`: why it failed, or what it waits for; `created` orders several."""

    name: str
    phase: str
    reason: str
    created: str

    def __str__(self) -> str:
        how = {RUNNING: "is being brought in", DONE: "has answered", FAILED: "failed"}[self.phase]
        return f"the last edit ({self.name}) {how}" + (f": {self.reason}" if self.reason else "")


def edit_status(core: client.CoreV1Api, pod: Pod) -> EditStatus:
    """Of a pod whose component is the rollout."""
    job = pod.metadata.labels.get("job-name") or pod.metadata.name
    created = str(pod.metadata.creation_timestamp)
    if pod.status.phase == "Succeeded":
        return EditStatus(job, DONE, "", created)
    said = _last_words(pod)
    if pod.status.phase == "Failed":
        reason = said or pod.status.message or pod.status.reason or _how_it_ended(pod)
        return EditStatus(job, FAILED, reason, created)
    reason = diagnose(core, pod).reason
    return EditStatus(job, RUNNING, "" if pod.status.phase == "Running" else reason, created)


def edits_without_pods(
    batch: client.BatchV1Api, namespace: str, selector: str, told: Sequence[EditStatus]
) -> Iterator[EditStatus]:
    """Of Jobs that failed and whose pods, which could say why, somebody deleted. Who may not list
    Jobs is told nothing of them."""
    found: list[Any] = []
    with contextlib.suppress(client.ApiException, urllib3.exceptions.HTTPError):
        found = batch.list_namespaced_job(
            namespace, label_selector=selector, _request_timeout=REQUEST_TIMEOUT
        ).items
    known = {item.name for item in told}
    for job in found:
        failed = any(
            item.type == "Failed" and item.status == "True" for item in job.status.conditions or []
        )
        if failed and job.metadata.name not in known:
            reason = "its pod was deleted before it could say how the edit ended"
            created = str(job.metadata.creation_timestamp)
            yield EditStatus(job.metadata.name, FAILED, reason, created)


def newest(found: Sequence[EditStatus]) -> EditStatus | None:
    """None of none."""
    return max(found, key=lambda item: item.created, default=None)


def _last_words(pod: Pod) -> str:
    """Its container's termination message."""
    return " ".join(word for ended in _ends(pod) for word in (ended.message or "").split())


def _how_it_ended(pod: Pod) -> str:
    """Of one that was killed: it says nothing itself."""
    ends = [f"ended with code {item.exit_code} ({item.reason})" for item in _ends(pod)]
    return f"its pod {ends[0] if ends else 'failed'} and did not say why"


def _ends(pod: Pod) -> Iterator[Any]:
    for status in pod.status.container_statuses or []:
        if status.state and status.state.terminated:
            yield status.state.terminated
