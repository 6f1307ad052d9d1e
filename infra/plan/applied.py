"""What a stack's `up` put in force, as its outputs keep it: the next edit is compared with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel

from infra.plan.edit_keys import RANK_KEYS, STACK_KEYS, TOKEN
from infra.plan.layers import RankPlan
from infra.stack.config import DeploymentConfig, RankParams


@dataclass(frozen=True)
class Applied:
    """Values by key of the stack file: of the whole stack, and of each rank in order.

    Values are JSON's. A key that another version of Splitstack did not know is missing. `room` is
    what ranks had to go for before (see `infra/cluster/room.py`).
    """

    stack: Mapping[str, Any]
    ranks: tuple[Mapping[str, Any], ...]
    room: str = ""

    def to_text(self) -> str:
        """Equal ones give equal texts."""
        return json.dumps(asdict(self), sort_keys=True)


def applied(deployment: DeploymentConfig, plan: Sequence[RankPlan], group_token: str) -> Applied:
    """Of a deployment that names cores and memory for every rank. The token is only in it as a
    digest."""
    values = {key: _value(deployment, key) for key in STACK_KEYS if key != TOKEN}
    values[TOKEN] = hashlib.sha256(f"splitstack applied {group_token}".encode()).hexdigest()
    values["common_params.model_revision"] = deployment.common_params.named_revision
    values["runtime_class"] = deployment.rank_runtime_class
    pairs = zip(deployment.ranks, plan, strict=True)
    ranks = [_rank(deployment, params, item) for params, item in pairs]
    return read_applied(json.dumps({"stack": values, "ranks": ranks}))


def read_applied(text: str) -> Applied:
    """What `to_text` wrote."""
    found = json.loads(text)
    return Applied(found["stack"], tuple(found["ranks"]), found.get("room", ""))


def _rank(deployment: DeploymentConfig, params: RankParams, plan: RankPlan) -> dict[str, Any]:
    computed = {
        "layers": f"{plan.layers[0]}-{plan.layers[1] - 1}",
        "cluster_id": deployment.cluster_of(params.rank),
        "placement": _placement(deployment, params.rank),
        "master": None if params.rank else _plain(deployment.master),
    }
    return {key: computed[key] if key in computed else getattr(params, key) for key in RANK_KEYS}


def _placement(deployment: DeploymentConfig, rank: int) -> dict[str, Any]:
    """Its own with that of all ranks."""
    topology = deployment.placement.topology
    return deployment.node_choice(rank).model_dump(mode="json") | {
        "topology": topology and topology.model_dump(mode="json")
    }


def _value(deployment: DeploymentConfig, key: str) -> Any:
    found: Any = deployment
    for name in key.split("."):
        found = getattr(found, name)
    if isinstance(found, list):
        return [_plain(item) for item in found]
    return _plain(found)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
