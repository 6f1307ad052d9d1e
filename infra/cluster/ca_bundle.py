"""The authorities that pods trust which reach what is outside of the cluster: files, variables."""

from __future__ import annotations

from infra.cluster.mounts import Mount, config_map_mount, secret_mount
from infra.stack.config import DeploymentConfig
from infra.stack.ownership_rules import BUNDLE_VARIABLES

_FOLDER, _VOLUME = "/etc/splitstack-ca", "ca-bundle"


def bundle_mounts(deployment: DeploymentConfig) -> list[Mount]:
    """None without ca_bundle. All keys of it: of a single file no change would come through."""
    bundle = deployment.ca_bundle
    if bundle.secret:
        return [secret_mount(bundle.secret, _FOLDER, _VOLUME)]
    return [config_map_mount(bundle.config_map, _FOLDER, _VOLUME)] if bundle.config_map else []


def bundle_environment(deployment: DeploymentConfig) -> dict[str, str]:
    """By which processes find it."""
    if not deployment.ca_bundle.given:
        return {}
    return dict.fromkeys(BUNDLE_VARIABLES, f"{_FOLDER}/{deployment.ca_bundle.key}")
