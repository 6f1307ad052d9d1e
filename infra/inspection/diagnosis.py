"""Why a pod is not ready: its status, its events and the end of its log, in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import urllib3.exceptions
from kubernetes import client

from infra.inspection.back_off import told_back_off
from infra.inspection.client import REQUEST_TIMEOUT
from infra.stack.placement_config import HOSTNAME

LOG_LINES = 10
NOT_READY = "not ready"
# A container that has run for so long is no longer one that crashes.
_SETTLED = timedelta(minutes=1)
_IMAGE_REASONS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
}
_STARTING = {"ContainerCreating", "PodInitializing"}
Pod = Any  # a V1Pod, whose every field is optional to the type checker


@dataclass(frozen=True)
class Diagnosis:
    """`reason` is "" for a pod that is well; `log` is the end of what crashed."""

    reason: str = ""
    log: tuple[str, ...] = ()


def is_ready(pod: Pod) -> bool:
    """Whether it serves and is to go on."""
    ready = condition(pod, "Ready")
    return bool(ready and ready.status == "True" and not pod.metadata.deletion_timestamp)


def diagnose(core: client.CoreV1Api, pod: Pod) -> Diagnosis:
    """The first of: leaving, evicted, scheduling, image, crash, starting, not ready."""
    if is_ready(pod):
        return Diagnosis()
    if pod.metadata.deletion_timestamp:
        return Diagnosis("is ending")
    if pod.status.phase == "Failed":
        mend = "pulumi up"
        # What a controller owns has its successor already, or gets it now.
        if pod.metadata.owner_references:
            mend = f"kubectl delete pod {pod.metadata.name} -n {pod.metadata.namespace}"
        mend = f"it stays so until: {mend}"
        return Diagnosis(_joined("failed", pod.status.reason, pod.status.message, mend))
    scheduled = condition(pod, "PodScheduled")
    if scheduled and scheduled.status != "True":
        message = scheduled.message or scheduled.reason
        return Diagnosis(_joined("scheduling", message, _wanted_nodes(pod)))
    events = _events(core, pod)
    if not pod.spec.node_name:
        reason = _last_message(events, "FailedScheduling") or "waits for the scheduler"
        return Diagnosis(_joined("scheduling", reason, _wanted_nodes(pod)))
    statuses = [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]
    for status in statuses:
        if diagnosis := _container_diagnosis(core, pod, status, events):
            return diagnosis
    return Diagnosis(_without_container_fault(pod, statuses, events))


def _wanted_nodes(pod: Pod) -> str:
    """The host names that the pod may run on: the scheduler's words do not tell them; else ""."""
    affinity = pod.spec.affinity and pod.spec.affinity.node_affinity
    required = affinity and affinity.required_during_scheduling_ignored_during_execution
    names = [
        name
        for term in (required.node_selector_terms if required else [])
        for rule in term.match_expressions or []
        if rule.key == HOSTNAME and rule.operator == "In"
        for name in rule.values
    ]
    return f"it may run on {', '.join(names)} only" if names else ""


def _container_diagnosis(
    core: client.CoreV1Api, pod: Pod, status: Any, events: Sequence[Any]
) -> Diagnosis | None:
    waiting = status.state.waiting if status.state else None
    if waiting and waiting.reason in _IMAGE_REASONS:
        # While backing off the status says only so; the event of the attempt says why.
        message = _last_message(events, "Failed", "InspectFailed") or waiting.message
        return Diagnosis(_joined(f"image {status.image or ''}".strip(), waiting.reason, message))
    ended = _last_end(status)
    if ended and not (status.state.running and status.ready):
        return _crash(core, pod, status, ended)
    if waiting and waiting.reason not in _STARTING:
        return Diagnosis(_joined(f"container {status.name}", waiting.reason, waiting.message))
    return None


def _crash(core: client.CoreV1Api, pod: Pod, status: Any, ended: Any) -> Diagnosis:
    how = f"ended with code {ended.exit_code}"
    if ended.reason == "OOMKilled":
        how = "was killed for exceeding its memory limit"
    elif ended.signal:
        how = f"was ended by signal {ended.signal}"
    restarts = f", {status.restart_count} restarts" if status.restart_count else ""
    reason = f"crash: container {status.name} {how}{restarts}"
    if waits := told_back_off(status):
        reason += f"; {waits}"
    # The kubelet's copy first: it outlives the log, and needs no right to read logs.
    lines = (ended.message or _log(core, pod, status)).splitlines()
    return Diagnosis(reason, tuple(lines[-LOG_LINES:]))


def _without_container_fault(pod: Pod, statuses: Sequence[Any], events: Sequence[Any]) -> str:
    """A pod on its node whose containers have not failed: it starts, or is not ready."""
    warning = _last_message(events)
    running = [status for status in statuses if status.state and status.state.running]
    if not statuses or len(running) < len(statuses):
        return _joined("starting", warning)
    ready = condition(pod, "Ready")
    if ready and ready.reason == "NodeNotReady":
        return f"node {pod.spec.node_name} does not answer"
    names = ", ".join(status.name for status in statuses if not status.ready)
    return _joined(f"{NOT_READY}: {names or (ready and ready.message) or ''}", warning)


def _last_end(status: Any) -> Any:
    """How the container ended, unless it has run well for a while since: then it waits for others,
    and its old crash is not why."""
    if status.state and status.state.terminated:
        return status.state.terminated
    running = status.state and status.state.running
    if running and running.started_at and datetime.now(UTC) - running.started_at > _SETTLED:
        return None
    return status.last_state and status.last_state.terminated


def _log(core: client.CoreV1Api, pod: Pod, status: Any) -> str:
    """ "" where the kubelet does not answer or the log may not be read: the rest is still said."""
    # While it waits for its next start, the log is still that of the one that ended.
    previous = bool(status.state and status.state.running)
    with contextlib.suppress(client.ApiException, urllib3.exceptions.HTTPError):
        return str(
            core.read_namespaced_pod_log(
                pod.metadata.name,
                pod.metadata.namespace,
                container=status.name,
                previous=previous,
                tail_lines=LOG_LINES,
                _request_timeout=REQUEST_TIMEOUT,
            )
        )
    return ""


def _events(core: client.CoreV1Api, pod: Pod) -> list[Any]:
    """Warnings about this very pod, not one of its name before it; the oldest first."""
    chosen = f"involvedObject.uid={pod.metadata.uid},type=Warning"
    with contextlib.suppress(client.ApiException, urllib3.exceptions.HTTPError):
        found = core.list_namespaced_event(
            pod.metadata.namespace, field_selector=chosen, _request_timeout=REQUEST_TIMEOUT
        )
        return sorted(found.items, key=_time_of)
    return []  # the pod's status alone says something too


def _time_of(event: Any) -> str:
    return str(event.last_timestamp or event.event_time or event.metadata.creation_timestamp)


def _last_message(events: Sequence[Any], *reasons: str) -> str:
    """Of the last event of these reasons (of any, without); "" where there is none."""
    chosen = [event for event in events if not reasons or event.reason in reasons]
    return (chosen[-1].message or "").strip() if chosen else ""


def condition(holder: Any, kind: str) -> Any:
    """Of a pod or a node; None where it has none of that kind."""
    return next((item for item in holder.status.conditions or [] if item.type == kind), None)


def _joined(*parts: str | None) -> str:
    return ": ".join(part.strip() for part in parts if part and part.strip())
