"""A deployment that was fitted and planned, as the supervisor gets it and state.json has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from infra.local import machine
from infra.local.edit import Wanted
from infra.local.processes import define_processes
from infra.local.state import StackState, StateFolder
from infra.plan.process_specs import Addresses, StagePorts
from infra.plan.report import render_plan
from infra.plan.stack_plan import StackPlan
from infra.stack.config import DeploymentConfig
from infra.stack.curl_line import curl_line
from infra.stack.file import StackFile


@dataclass(frozen=True)
class Prepared:
    """`summary` is what `up` prints when it is ready."""

    wanted: Wanted
    summary: str


def prepared(
    folder: StateFolder,
    stack_file: StackFile,
    sets: Sequence[str],
    deployment: DeploymentConfig,
    plan: StackPlan,
    places: Addresses,
    commit: str,
    *,
    edit: str = "",
    engine: str = "",
) -> Prepared:
    """`deployment` is fitted; `sets` are all those that `stack_file` was read with. `engine` as in
    define_processes."""
    wanted = define_processes(folder, deployment, plan, places, commit, engine)
    about = {
        "stack": stack_file.stack,
        "stack_file": str(stack_file.path.absolute()),
        "sets": list(sets),
        "master_url": places.master_url,
        "front_url": _front(deployment, places),
        "about": {
            "addresses": asdict(places),
            "ranks": [{"cpu": item.cpu, "memory": item.memory} for item in deployment.ranks],
        },
    }
    summary = _summary(deployment, plan, places)
    return Prepared(replace(wanted, id=edit, about=about | {"summary": summary}), summary)


def with_about(state: StackState, about: dict[str, Any]) -> StackState:
    """The state of what runs once it is that."""
    return replace(state, **(about | {"sets": tuple(about["sets"])}))


def addresses_of(state: StackState) -> Addresses:
    """Those of what runs."""
    given = dict(state.about["addresses"])
    given["stages"] = tuple(StagePorts(**item) for item in given["stages"])
    return Addresses(**given)


def _front(deployment: DeploymentConfig, places: Addresses) -> str:
    if deployment.inference_server.enabled:
        return f"http://{machine.LOOPBACK}:{places.inference_port}"
    return next(iter(places.block_urls.values()), places.master_url)


def _summary(deployment: DeploymentConfig, plan: StackPlan, places: Addresses) -> str:
    lines = [render_plan(plan), "", f"master            {places.master_url}"]
    lines += [f"block             {url}  {name}" for name, url in places.block_urls.items()]
    if deployment.inference_server.enabled:
        front = _front(deployment, places)
        lines.append(f"inference server  {front}")
        if places.block_urls:
            lines += ["", "try it:", curl_line(front, next(iter(places.block_urls)))]
    lines += ["", f"ready; logs: splitstack logs -f -s {deployment.deployment_name}"]
    return "\n".join(lines)
