"""When a Job has succeeded or failed, and what its pods say: as the real provider's awaiter.

https://github.com/pulumi/pulumi-kubernetes/blob/master/provider/pkg/await/job.go
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

REPLACE_UNREADY = "pulumi.com/replaceUnready"
# Of a Job that failed for another reason (a podFailurePolicy) it waits until the time is over.
_SEEN_REASONS = ("BackoffLimitExceeded", "DeadlineExceeded")


def job_not_complete(found: Mapping[str, Any], _: object = None) -> str:
    """ "" once it has succeeded."""
    status = found.get("status", {})
    if status.get("startTime") and _condition(status, "Complete"):
        return ""
    counts = ", ".join(f"{name} {status.get(name, 0)}" for name in ("active", "failed"))
    return f"the Job has not succeeded ({counts})"


def job_failure(found: Mapping[str, Any]) -> str:
    """What ends the wait for it at once; "" where nothing does."""
    failed = _condition(found.get("status", {}), "Failed")
    if failed and failed.get("reason") in _SEEN_REASONS:
        return f"[{failed['reason']}] {failed.get('message', '')}"
    return ""


def pod_messages(pods: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What the provider tells of pods that say that they are not ready, their termination messages
    among it. (provider/pkg/await/checker/pod/check.go)
    """
    for pod in pods:
        status, metadata = pod.get("status", {}), pod["metadata"]
        if status.get("phase") == "Succeeded":
            continue
        said = []
        if _untrue(status, "Ready"):
            statuses = status.get("containerStatuses", [])
            said = [text for item in statuses for text in _container(item)]
        unscheduled = _untrue(status, "PodScheduled").get("message", "")
        if text := "; ".join(filter(None, [*said, unscheduled])):
            yield f"[Pod {metadata['namespace']}/{metadata['name']}]: {text}"


def wants_replacement(manifest: Mapping[str, Any]) -> bool:
    """Whether a Job that has not succeeded is to be made anew by the next update."""
    annotations = manifest["metadata"].get("annotations") or {}
    return manifest["kind"] == "Job" and annotations.get(REPLACE_UNREADY) == "true"


def _container(status: Mapping[str, Any]) -> Iterator[str]:
    state = status.get("state", {})
    if waiting := state.get("waiting"):
        yield f"[{waiting.get('reason')}] {waiting.get('message', '')}"
    if (ended := state.get("terminated")) and ended.get("reason"):
        if ended.get("message"):
            yield f"[{ended['reason']}] {ended['message']}"
        else:
            yield f'container "{status["name"]}" completed with exit code {ended["exitCode"]}'


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    conditions = status.get("conditions") or []
    return next((c for c in conditions if c["type"] == kind and c["status"] == "True"), None)


def _untrue(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    conditions = status.get("conditions") or []
    return next((c for c in conditions if c["type"] == kind and c["status"] != "True"), {})
