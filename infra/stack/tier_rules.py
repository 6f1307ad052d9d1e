"""Rules on the tiers in front of the ranks. Each function yields Faults; none raises."""

from __future__ import annotations

import re
from collections.abc import Iterator

from contract.faults import Fault
from infra.stack.config import DeploymentConfig

_STORE_URL = re.compile(
    r"rediss?://(?:[^/\s:@]*(?P<password>:[^/\s@]*)?@)?"
    r"(?:[A-Za-z0-9.-]+|\[[0-9a-f:]+\])(?::(?P<port>[0-9]{1,5}))?(?:/[0-9]{1,3})?"
)


def tier_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    """Faults that matter on one machine and on clusters alike."""
    yield from _block_faults(deployment)
    yield from _session_store_faults(deployment)


def cluster_tier_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    """Faults that matter on clusters only."""
    if not 30000 <= deployment.inference_server.node_port <= 32767:
        port = deployment.inference_server.node_port
        yield Fault("inference_server.node_port", port, "must be from 30000 to 32767 in a cluster")
    for index, block in enumerate(deployment.proxy_blocks):
        if deployment.session_store.mode == "sqlite" and block.max_instances > 1:
            rule = (
                "must be 1 with session_store.mode sqlite, which instances cannot share; "
                "set it to valkey or url"
            )
            yield Fault(f"proxy_blocks[{index}].max_instances", block.max_instances, rule)
    store = deployment.session_store
    if store.mode == "valkey" and "@sha256:" not in store.image:
        rule = "must end in @sha256:<digest> with session_store.mode valkey"
        yield Fault("session_store.image", store.image, rule)


def _block_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    seen: set[str] = set()
    for index, block in enumerate(deployment.proxy_blocks):
        path = f"proxy_blocks[{index}]"
        if block.block_id in seen:
            yield Fault(f"{path}.block_id", block.block_id, "is listed twice")
        seen.add(block.block_id)
        if block.max_instances < block.min_instances:
            rule = f"must be at least min_instances ({block.min_instances})"
            yield Fault(f"{path}.max_instances", block.max_instances, rule)
    if deployment.inference_server.enabled and not deployment.proxy_blocks:
        rule = "must list a block: the inference server would have none to serve"
        yield Fault("proxy_blocks", [], rule)


def _session_store_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    store = deployment.session_store
    path = "session_store.url"
    # What lies before an @ may be a password.
    shown = "...@" + store.url.rpartition("@")[2] if "@" in store.url else store.url
    if store.mode != "url":
        if store.url:
            yield Fault(path, shown, f"is refused with session_store.mode {store.mode}")
    elif not (match := _STORE_URL.fullmatch(store.url)) or int(match["port"] or 1) > 65535:
        yield Fault(path, shown, "must be as in redis://host:6379/0, or rediss:// for TLS")
    elif match["password"] is not None:
        rule = (
            "must not hold a password; `pulumi config set --secret "
            "splitstack:session_store_password` keeps it"
        )
        yield Fault(path, shown, rule)
    if store.mode == "url" and store.size is not None:
        yield Fault("session_store.size", store.size, "is refused with session_store.mode url")
