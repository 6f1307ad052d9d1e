"""What became of the last edit of a stack in a cluster: told by the pod of its rollout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kubernetes import client

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
        reason = said or pod.status.message or pod.status.reason or "its pod did not say why"
        return EditStatus(job, FAILED, reason, created)
    reason = diagnose(core, pod).reason
    return EditStatus(job, RUNNING, "" if pod.status.phase == "Running" else reason, created)


def newest(found: Sequence[EditStatus]) -> EditStatus | None:
    """None of none."""
    return max(found, key=lambda item: item.created, default=None)


def _last_words(pod: Pod) -> str:
    """Its container's termination message."""
    for status in pod.status.container_statuses or []:
        ended = status.state and status.state.terminated
        if ended and ended.message:
            return " ".join(ended.message.split())
    return ""
