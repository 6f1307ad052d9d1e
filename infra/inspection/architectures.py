"""Whether nodes can run what images are built for. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from infra.cluster.cluster_lookup import architecture_of
from infra.inspection.client import Finding, Level
from infra.inspection.pod_wish import PodWish
from infra.stack.config import DeploymentConfig

_SHOWN = 8


def foreign_nodes(
    deployment: DeploymentConfig, wishes: Sequence[PodWish], nodes: Mapping[str, Any]
) -> Iterator[str]:
    """Nodes that would take a pod of ours and cannot run images.platform, one sentence each."""
    images = deployment.images
    if images.builder != "docker" or not images.platform:
        return
    for name, node in nodes.items():
        architecture = architecture_of(node)
        if not architecture or architecture in images.platform.split("/"):
            continue
        if any(wish.node in ("", name) and not wish.refusals(node) for wish in wishes):
            yield (
                f"node {name} is {architecture}, takes pods of this stack and cannot run images "
                f"for {images.platform} (images.platform): mend it, or keep pods off by placement "
                "and node_selector"
            )


def image_finding(
    subject: str, built_for: Collection[str], architectures: Collection[str]
) -> Finding | None:
    """Of an image given by digest; None where every node can run it, or nothing is known."""
    missing = sorted(set(architectures) - set(built_for))
    if not built_for or not missing:
        return None
    none_can = len(missing) == len(set(architectures))
    level: Level = "fault" if none_can else "warning"
    some = "the nodes are" if none_can else "there are nodes that are"
    text = f"is for {', '.join(sorted(built_for)[:_SHOWN])} only, and {some} {', '.join(missing)}"
    return Finding(level, subject, text)
