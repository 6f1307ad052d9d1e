"""The alert rules of one stack: those of alerts.yaml for its own series alone. Pure."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml

from infra.stack.config import DeploymentConfig

ALERTS_FILE = "alerts.yaml"
# What stands in the file for the deployment's name.
_STACK = "STACK"
_OF_BLOCKS, _OF_SERVER = "SplitstackBlocksAbsent", "SplitstackInferenceServerAbsent"


def alert_rules(deployment: DeploymentConfig) -> dict[str, Any]:
    """A rule file's contents. No two stacks share a series, nor the name of a group."""
    folder = files("infra.cluster.observability")
    text = folder.joinpath(ALERTS_FILE).read_text("utf-8")
    found: dict[str, Any] = yaml.safe_load(text.replace(_STACK, deployment.deployment_name))
    # What this stack has not would be absent for ever.
    without = set()
    if not deployment.proxy_blocks:
        without.add(_OF_BLOCKS)
    if not deployment.inference_server.enabled:
        without.add(_OF_SERVER)
    for group in found["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule["alert"] not in without]
    return found
