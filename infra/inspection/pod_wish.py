"""What each pod of a stack asks of the nodes of a cluster. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from infra.cluster.rank_pod import GPU, cache_disk
from infra.inspection.diagnosis import condition
from infra.stack.config import DeploymentConfig
from infra.stack.placement_config import NodeChoice, NodeExpression, Toleration
from infra.stack.tier_config import InferenceServer, SessionStore

_REPELLING = ("NoSchedule", "NoExecute")
# The kubelet's own of a node that is not ready or cordoned, which are told in words.
_OWN_TAINTS = "node.kubernetes.io/"


@dataclass(frozen=True)
class PodWish:
    """One pod. `amounts` maps resources to cores, bytes or counts; `node` "" is any node."""

    name: str
    amounts: Mapping[str, Decimal]
    node: str = ""
    choice: NodeChoice = field(default_factory=NodeChoice)
    tolerations: Sequence[Toleration] = ()
    where: str = "tolerations"
    """The stack file's key of `tolerations`."""

    def refusals(self, node: Any) -> list[str]:
        """Why the scheduler would not put it there, whatever is free; empty where it would."""
        found = []
        ready = condition(node, "Ready")
        if ready is None or ready.status != "True":
            found.append("it is not ready")
        if node.spec.unschedulable:
            found.append("it is cordoned")
        found += _mismatches(self.choice, node.metadata.labels or {})
        for taint in node.spec.taints or []:
            own = taint.key.startswith(_OWN_TAINTS)
            if taint.effect in _REPELLING and not own and not self._tolerates(taint):
                value = f"={taint.value}" if taint.value else ""
                found.append(f"taint {taint.key}{value}:{taint.effect} is not in {self.where}")
        return found

    def _tolerates(self, taint: Any) -> bool:
        return any(
            item.effect in ("", taint.effect)
            and (item.key == taint.key or (not item.key and item.operator == "Exists"))
            and (item.operator == "Exists" or item.value == (taint.value or ""))
            for item in self.tolerations
        )


def pod_wishes(deployment: DeploymentConfig, cluster_id: str) -> list[PodWish]:
    """Those that run on this cluster. `deployment` is fitted: each rank names cores and memory."""
    ranks = list(_rank_wishes(deployment, cluster_id))
    return ranks + (
        list(_tier_wishes(deployment)) if cluster_id == deployment.cluster_of(0) else []
    )


def _rank_wishes(deployment: DeploymentConfig, cluster_id: str) -> Iterator[PodWish]:
    for params in deployment.ranks:
        if deployment.cluster_of(params.rank) != cluster_id:
            continue
        amounts = _amounts(params.cpu, params.memory)
        if params.rank == 0 and deployment.platform == "torch":
            master = _amounts(deployment.master.cpu, deployment.master.memory)
            amounts = {name: amount + master[name] for name, amount in amounts.items()}
        if deployment.gpu_pinning == "resource":
            amounts[GPU] = Decimal(deployment.devices_per_rank)
        if disk := cache_disk(deployment):
            amounts["ephemeral-storage"] = Decimal(disk)
        yield PodWish(
            f"rank {params.rank}",
            amounts,
            params.node_id,
            deployment.node_choice(params.rank),
            deployment.tolerations,
        )


def _tier_wishes(deployment: DeploymentConfig) -> Iterator[PodWish]:
    for index, block in enumerate(deployment.proxy_blocks):
        for _ in range(block.min_instances):
            yield PodWish(
                f"block {block.block_id}",
                _amounts(block.cpu, block.memory),
                block.node_id,
                NodeChoice(node_selector=block.node_selector),
                block.tolerations,
                f"proxy_blocks[{index}].tolerations",
            )
    server, store = deployment.inference_server, deployment.session_store
    tiers: dict[str, InferenceServer | SessionStore] = {}
    if server.enabled:
        tiers["inference_server"] = server
    if deployment.has_valkey:
        tiers["session_store"] = store
    for name, tier in tiers.items():
        yield PodWish(
            name.replace("_", " "),
            _amounts(tier.cpu, tier.memory),
            choice=NodeChoice(node_selector=tier.node_selector),
            tolerations=tier.tolerations,
            where=f"{name}.tolerations",
        )


def _amounts(cpu: float | None, memory: int | None) -> dict[str, Decimal]:
    return {"cpu": Decimal(str(cpu or 0)), "memory": Decimal(memory or 0)}


def _mismatches(choice: NodeChoice, labels: Mapping[str, str]) -> Iterator[str]:
    for key, value in choice.node_selector.items():
        if labels.get(key) != value:
            yield f"its label {key} is {labels.get(key, 'not there')}, not {value}"
    for item in choice.node_affinity:
        if item.weight is None and not _holds(item, labels):
            wanted = " ".join([item.operator, *item.values])
            yield f"its label {item.key} is {labels.get(item.key, 'not there')}, not {wanted}"


def _holds(expression: NodeExpression, labels: Mapping[str, str]) -> bool:
    """As the scheduler sees it: NotIn holds of a node without the label too."""
    value, values = labels.get(expression.key), expression.values
    match expression.operator:
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "In":
            return value in values
        case "NotIn":
            return value not in values
    if value is None or not value.lstrip("-").isdecimal():
        return False
    bound = int(values[0])
    return int(value) > bound if expression.operator == "Gt" else int(value) < bound
