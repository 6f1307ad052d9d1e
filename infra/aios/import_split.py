"""An AIOS `splits/create` request -> the text of a stack file, with warnings."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from contract.faults import Fault
from infra.stack.config import DEPLOYMENT_KEY
from infra.stack.document import yaml_text
from infra.stack.faults import StackConfigError
from infra.stack.file import parse_deployment

_SOURCE = "the splits/create request"
_HEADER = """\
# Imported from an AIOS splits/create request by `splitstack import-split`.
# Every key: docs/stack-file.md
# yaml-language-server: $schema=../infra/stack.schema.json
"""
_KEY_ORDER = (
    "deployment_name",
    "nnodes",
    "common_params",
    "per_rank_params",
    "rank_0_cluster_id",
    "cluster_id",
    "multi_cluster",
    "platform",
    "gpu_pinning",
    "workload",
    "clusters",
    "proxy_blocks",
)


@dataclass(frozen=True)
class ImportedStack:
    """The stack file's text and, a sentence each, what of the request was changed and why."""

    text: str
    warnings: tuple[str, ...]


def import_split(document: object) -> ImportedStack:
    """Import a request; keys of ours beside AIOS's own are kept (layers, advertise_address, ...).

    Raises StackConfigError with every fault.
    """
    if not isinstance(document, dict):
        raise StackConfigError(_SOURCE, [Fault("the request", document, "must be an object")])
    deployment: dict[str, Any] = copy.deepcopy(document)
    warnings = _correct_devices(deployment)
    _add_what_aios_leaves_unsaid(deployment)
    parse_deployment(deployment, source=_SOURCE)
    ordered = {key: deployment[key] for key in _KEY_ORDER if key in deployment}
    stack = {"config": {DEPLOYMENT_KEY: ordered | deployment}}
    return ImportedStack(_HEADER + yaml_text(stack), tuple(warnings))


def _rank_items(deployment: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    params = deployment.get("per_rank_params")
    if not isinstance(params, list):
        return []
    return [(index, item) for index, item in enumerate(params) if isinstance(item, dict)]


def _correct_devices(deployment: dict[str, Any]) -> list[str]:
    """Leave each rank the one device that CUDA would have given it; says what was changed.

    CUDA takes ordinals up to the first one that does not exist, and a stage the first of those.
    What no device is left of stays, for validation to refuse.
    """
    warnings = []
    for index, item in _rank_items(deployment):
        devices = str(item.get("nvidia_visible_devices", "")).split(",")
        shown = str(item.get("cuda_visible_devices", ""))
        ordinals = shown.split(",")
        if devices == [""] or len(ordinals) < 2 or not all(part.isdecimal() for part in ordinals):
            continue
        first = int(ordinals[0])
        if first >= len(devices):
            continue
        item["cuda_visible_devices"] = ordinals[0]
        warnings.append(
            f'per_rank_params[{index}].cuda_visible_devices = "{shown}": corrected to '
            f'"{ordinals[0]}": {_why_corrected(devices, ordinals)}; rank {item.get("rank")} uses '
            f"physical device {devices[first]}"
        )
    return warnings


def _why_corrected(devices: list[str], ordinals: list[str]) -> str:
    beyond = [ordinal for ordinal in ordinals if int(ordinal) >= len(devices)]
    if not beyond:
        return "a stage uses exactly one device, the first of those listed"
    count = "1 device" if len(devices) == 1 else f"{len(devices)} devices"
    return (
        f'it counts from 0 within nvidia_visible_devices "{",".join(devices)}" ({count}), so '
        f"ordinal {', '.join(beyond)} does not exist, and CUDA ignores it and what follows"
    )


def _add_what_aios_leaves_unsaid(deployment: dict[str, Any]) -> None:
    pinned = any(
        item.get("nvidia_visible_devices") not in (None, "")
        or item.get("cuda_visible_devices") not in (None, "")
        for _, item in _rank_items(deployment)
    )
    deployment.setdefault("gpu_pinning", "visible-devices" if pinned else "none")
    # Pods of the names that AIOS gives them.
    deployment.setdefault("workload", "pod")
    named = deployment.get("cluster_id")
    candidates = [
        deployment.get("rank_0_cluster_id"),
        *(named if isinstance(named, list) else [named]),
        *(item.get("cluster_id") for _, item in _rank_items(deployment)),
    ]
    # The request does not say how a cluster is reached: a context of its name is the best guess.
    clusters = {name: {"context": name} for name in candidates if isinstance(name, str) and name}
    if clusters:
        deployment.setdefault("clusters", clusters)
    name = deployment.get("deployment_name")
    if isinstance(name, str) and name:
        deployment.setdefault("proxy_blocks", [{"block_id": name}])
