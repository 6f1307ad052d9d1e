"""Rules on selectors and on what several objects share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from infra.policy.resources import INSTANCE_LABEL, Object, Resource, items, pods, section

_CLAIM_KINDS = ("ResourceClaim", "ResourceClaimTemplate")
_DEVICE_UUID = re.compile(r"GPU-[0-9A-Za-z-]+|MIG-[0-9A-Za-z-]+")


def missing_instance(resource: Resource) -> Iterator[str]:
    """A selector without the instance takes in the pods of the next stack on this cluster."""
    for path, selector in _selectors(resource):
        if INSTANCE_LABEL not in selector:
            yield f"{resource.label}: {path} must include {INSTANCE_LABEL}"


def _selectors(resource: Resource) -> Iterator[tuple[str, Object]]:
    spec = section(resource.properties, "spec")
    kind = resource.short_kind
    if kind == "Service":
        if section(spec, "selector"):
            yield "spec.selector", section(spec, "selector")
    elif kind in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "PodDisruptionBudget"):
        yield "spec.selector.matchLabels", section(section(spec, "selector"), "matchLabels")
    elif kind == "NetworkPolicy":
        subject = section(section(spec, "podSelector"), "matchLabels")
        yield "spec.podSelector.matchLabels", subject


def double_booked_device(resources: Iterable[Resource]) -> Iterator[tuple[str, str]]:
    """(URN, sentence) for each object that would hold a GPU that another one holds."""
    holders: dict[tuple[str, str, str], Resource] = {}
    # The engine's order differs from run to run.
    for resource in sorted(resources, key=lambda item: item.urn):
        for node, device in _devices(resource):
            holder = holders.setdefault((resource.provider, node, device), resource)
            if holder is not resource:
                where = device + (f" of node {node}" if node else "")
                told = f"{resource.label} would hold {where}, which {holder.label} holds"
                yield resource.urn, told


def _devices(resource: Resource) -> Iterator[tuple[str, str]]:
    """(node, device) of what an object holds; claims and what they claim are on no node yet."""
    if resource.short_kind in _CLAIM_KINDS:
        for uuid in _DEVICE_UUID.findall(str(_expressions(resource.properties.get("spec")))):
            yield "", f"device {uuid}"
    namespace = section(resource.properties, "metadata").get("namespace", "default")
    for pod in pods(resource):
        for claim in items(pod.spec, "resourceClaims"):
            if claim.get("resourceClaimName"):
                yield "", f"ResourceClaim {namespace}/{claim['resourceClaimName']}"
        for container in pod.containers:
            for device in _visible_devices(pod.environment(container)):
                # A pod without a node is the business of `misplaced_rank`.
                for node in pod.pinned_nodes[:1]:
                    yield node, f"device {device}"


def _visible_devices(environment: dict[str, str]) -> list[str]:
    """CUDA_VISIBLE_DEVICES counts within NVIDIA_VISIBLE_DEVICES; empty: all of them."""
    devices = [item for item in environment.get("NVIDIA_VISIBLE_DEVICES", "").split(",") if item]
    ordinals = environment.get("CUDA_VISIBLE_DEVICES", "")
    if devices in (["none"], ["void"]) or not ordinals:
        return [device for device in devices if device not in ("none", "void")]
    chosen = [int(item) for item in ordinals.split(",") if item.strip().isdigit()]
    return [devices[ordinal] for ordinal in chosen if ordinal < len(devices)]


def _expressions(value: Any) -> list[str]:
    """Every CEL expression below a claim's spec, whichever version of the API it is of."""
    if isinstance(value, Mapping):
        own = [value["expression"]] if isinstance(value.get("expression"), str) else []
        return own + [found for item in value.values() for found in _expressions(item)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [found for item in value for found in _expressions(item)]
    return []
