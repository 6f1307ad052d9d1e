"""Names of images: where each tier's is pushed to, or comes from. Pure."""

from __future__ import annotations

from typing import Literal

from infra.stack.config import DeploymentConfig

Tier = Literal["runner", "proxy_block", "inference_server"]


def image_names(deployment: DeploymentConfig) -> dict[Tier, str]:
    """The image of each tier that this deployment has, as the stack file gives or implies it."""
    runner = deployment.common_params.image
    names: dict[Tier, str] = {"runner": runner}
    if deployment.proxy_blocks:
        names["proxy_block"] = deployment.images.proxy_block or _beside(runner, "proxy-block")
    if deployment.inference_server.enabled:
        given = deployment.images.inference_server
        names["inference_server"] = given or _beside(runner, "inference-server")
    return names


def registry_of(image: str) -> str:
    """The registry's host:port; "" for a name that Docker would look up on Docker Hub."""
    host, slash, _ = image.partition("/")
    # Docker's own rule for telling a host from the first part of a path.
    is_host = slash and (set(host) & set(".:") or host == "localhost" or host != host.lower())
    return host if is_host else ""


def _beside(image: str, tier: str) -> str:
    """`host:5000/team/runner:1` -> `host:5000/team/splitstack-proxy-block:1`."""
    folder, slash, last = image.rpartition("/")
    _, colon, tag = last.partition(":")
    return f"{folder}{slash}splitstack-{tier}{colon}{tag}"
