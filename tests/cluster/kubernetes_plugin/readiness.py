"""When an object counts as created: what the real provider waits for, by kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.cluster.kubernetes_plugin.jobs import job_not_complete

SKIP = "pulumi.com/skipAwait"
# Waited for when it is created; a refresh takes it as it is.
NOT_ON_READ = frozenset({"PersistentVolumeClaim"})


def awaited(manifest: Mapping[str, Any]) -> bool:
    """Whether somebody waits for this object at all."""
    annotations = manifest["metadata"].get("annotations") or {}
    return manifest["kind"] in _WHY_NOT and annotations.get(SKIP) != "true"


def why_not_ready(found: Mapping[str, Any], endpoints: Mapping[str, Any] | None = None) -> str:
    """One sentence; "" when it is ready. `endpoints` is the object of a Service's name."""
    return _WHY_NOT[found["kind"]](found, endpoints)


def _pod(found: Mapping[str, Any], _: object) -> str:
    status = found.get("status", {})
    conditions = {item["type"]: item for item in status.get("conditions", [])}
    if conditions.get("Ready", {}).get("status") == "True":
        return ""
    waiting = [
        f"container {item['name']}: {item['state']['waiting'].get('reason')} "
        f"{item['state']['waiting'].get('message', '')}".strip()
        for item in status.get("containerStatuses", [])
        if "waiting" in item.get("state", {})
    ]
    unscheduled = conditions.get("PodScheduled", {}).get("message", "")
    return "; ".join([*waiting, unscheduled]).strip("; ") or "containers are not ready"


def _deployment(found: Mapping[str, Any], _: object) -> str:
    wanted, status = found["spec"].get("replicas", 1), found.get("status", {})
    fresh = status.get("observedGeneration", 0) >= found["metadata"]["generation"]
    counts = [status.get(f"{name}Replicas", 0) for name in ("updated", "available")]
    old = status.get("replicas", 0) - counts[0]
    ready = fresh and min(counts) >= wanted and old <= 0
    return "" if ready else f"{counts[1]} of {wanted} replicas are available"


def _stateful_set(found: Mapping[str, Any], _: object) -> str:
    wanted, status = found["spec"].get("replicas", 1), found.get("status", {})
    fresh = status.get("observedGeneration", 0) >= found["metadata"]["generation"]
    counts = [status.get(f"{name}Replicas", 0) for name in ("updated", "ready")]
    ready = fresh and min(counts) >= wanted
    return "" if ready else f"{counts[1]} of {wanted} replicas are ready"


def _claim(found: Mapping[str, Any], _: object) -> str:
    phase = found.get("status", {}).get("phase")
    return "" if phase == "Bound" else f"the claim is {phase}"


def _service(found: Mapping[str, Any], endpoints: Mapping[str, Any] | None) -> str:
    """Blocks on pods that have an address and are not ready; none at all is as good as ready."""
    spec = found["spec"]
    headless = spec.get("clusterIP") == "None" or spec.get("type") == "ExternalName"
    if headless or not spec.get("selector"):
        return ""
    if endpoints is None:
        return "it has no endpoints yet"
    subsets = endpoints.get("subsets") or []
    unready = [address for item in subsets for address in item.get("notReadyAddresses") or []]
    return f"{len(unready)} of its pods are not ready" if unready else ""


_WHY_NOT: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any] | None], str]] = {
    "Pod": _pod,
    "Deployment": _deployment,
    "StatefulSet": _stateful_set,
    "PersistentVolumeClaim": _claim,
    "Service": _service,
    "Job": job_not_complete,
}
