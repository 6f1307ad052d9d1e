"""What images are built for: what the nodes are that run them."""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterator

from contract.faults import MISSING, Fault
from infra.stack.config import DeploymentConfig

# Python's names of what Docker and Kubernetes call otherwise.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def platform_faults(
    deployment: DeploymentConfig, architectures: Collection[str]
) -> Iterator[Fault]:
    """Of the nodes' architectures, where images are built and the file names none."""
    images = deployment.images
    if images.builder == "docker" and not images.platform and len(architectures) > 1:
        known = sorted(architectures)
        rule = (
            f"must be given: the nodes are {' and '.join(known)}, and an image is built for one of "
            f"them, as in linux/{known[0]}; keep pods off the others by placement and node_selector"
        )
        yield Fault("images.platform", MISSING, rule)


def build_platform(deployment: DeploymentConfig, architectures: Collection[str]) -> str:
    """The file's, else that of the nodes; of this machine where no cluster tells. "" where nothing
    is built."""
    images = deployment.images
    if images.builder != "docker" or images.platform:
        return images.platform
    assert len(architectures) <= 1
    machine = platform.machine()
    return f"linux/{next(iter(architectures), _ARCHITECTURES.get(machine, machine))}"
