"""The labels of every object of a stack, and the selectors over them."""

from __future__ import annotations

from contract import names
from infra.stack.config import DeploymentConfig

NAME = "app.kubernetes.io/name"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = names.COMPONENT_LABEL
MANAGED_BY = "app.kubernetes.io/managed-by"
RANK = "splitstack.dev/rank"
BLOCK = "splitstack.dev/block"
# An annotation: the namespace stays when the stack that made it goes.
RETAINED = "splitstack.dev/retained"
INSTEAD_OF = "splitstack.dev/instead-of"  # an annotation: the uid of a rank's failed pod
PROJECT = "splitstack"

RANK_COMPONENT = "rank"
RANK_MASTER = "rank-master"
PROXY_BLOCK = names.PROXY_BLOCK
INFERENCE_SERVER = "inference-server"
SESSION_STORE = "session-store"
ROLLOUT = "rollout"


def labels(
    deployment: DeploymentConfig, component: str, rank: int | None = None, block_id: str = ""
) -> dict[str, str]:
    """Labels of an object; `component` "" for what belongs to all of them."""
    result = {NAME: PROJECT, INSTANCE: deployment.deployment_name, MANAGED_BY: PROJECT}
    if component:
        result[COMPONENT] = component
    if rank is not None:
        result[RANK] = str(rank)
    if block_id:
        result[BLOCK] = block_id
    return result


def selector(
    deployment: DeploymentConfig, component: str, rank: int | None = None, block_id: str = ""
) -> dict[str, str]:
    """What picks those pods of this deployment and no other's."""
    chosen = labels(deployment, component, rank, block_id)
    return {key: value for key, value in chosen.items() if key not in (NAME, MANAGED_BY)}
