"""Rules of the inference server that join several keys. Functions yield Faults; none raises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from contract.faults import Fault
from infra.stack.config import DeploymentConfig


def front_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    """Faults that matter on one machine and on clusters alike."""
    for name, shares in deployment.inference_server.aliases.items():
        yield from _alias_faults(deployment, name, shares)


def _alias_faults(
    deployment: DeploymentConfig, name: str, shares: Mapping[str, int]
) -> Iterator[Fault]:
    path = f"inference_server.aliases.{name}"
    own = [block.block_id for block in deployment.proxy_blocks]
    if name in own:
        yield Fault(path, dict(shares), "is the id of a block of this stack; take another name")
    if not any(shares.values()):
        rule = "must give a block a share above 0, as in {block_id: 1}: it stands for nothing"
        yield Fault(path, dict(shares), rule)
    for block_id, share in shares.items():
        if block_id == name and name not in own:
            yield Fault(f"{path}.{block_id}", share, "names itself; an alias names blocks")
        elif block_id in deployment.inference_server.aliases and block_id != name:
            yield Fault(f"{path}.{block_id}", share, "is an alias too; an alias names blocks")
        elif deployment.inference_server.discovery == "static" and block_id not in own:
            rule = (
                f"is no block of this stack ({', '.join(own) or 'none'}); others are found with "
                "inference_server.discovery kubernetes only"
            )
            yield Fault(f"{path}.{block_id}", share, rule)
