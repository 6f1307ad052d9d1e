"""The images of the tiers: built and pushed here, or taken as given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pulumi
import pulumi_docker

from infra.stack.config import DeploymentConfig
from infra.stack.image_names import Tier, image_names

_REPOSITORY = Path(__file__).resolve().parents[2]


class ContainerImages(pulumi.ComponentResource):
    """One image per tier that the deployment has.

    `platform` is what they are built for, as in linux/amd64. `references` gives each as
    `host/path@sha256:...`, which is all that pods get to see: a tag that moves would change what
    runs without a change of the stack.
    """

    references: Mapping[str, pulumi.Output[str]]

    def __init__(
        self,
        deployment: DeploymentConfig,
        platform: str,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        name = f"{deployment.deployment_name}-images"
        super().__init__("splitstack:deployment:Images", name, None, opts)
        names = image_names(deployment)
        if deployment.images.builder == "reference":
            self.references = {tier: pulumi.Output.from_input(names[tier]) for tier in names}
        else:
            # Default providers are disabled. Credentials are those of `docker login`.
            provider = pulumi_docker.Provider(name, opts=pulumi.ResourceOptions(parent=self))
            child = pulumi.ResourceOptions(parent=self, provider=provider)
            self.references = {
                tier: _built(deployment, tier, names[tier], platform, child).repo_digest
                for tier in names
            }
        self.register_outputs(dict(self.references))


def _built(
    deployment: DeploymentConfig,
    tier: Tier,
    name: str,
    platform: str,
    options: pulumi.ResourceOptions,
) -> pulumi_docker.Image:
    # Relative to the program's folder: an absolute path would differ from machine to machine, and
    # each machine would build anew.
    context = os.path.relpath(_REPOSITORY)
    return pulumi_docker.Image(
        f"{deployment.deployment_name}-{tier.replace('_', '-')}-image",
        image_name=name,
        build=pulumi_docker.DockerBuildArgs(
            context=context,
            dockerfile=os.path.join(context, dockerfile(deployment, tier)),
            args=build_arguments(deployment, tier),
            platform=platform or None,
        ),
        opts=options,
    )


def dockerfile(deployment: DeploymentConfig, tier: Tier) -> str:
    """Of a tier's image, from the repository's root."""
    if tier == "runner" and deployment.platform == "vllm":
        return "runner/keeper/Dockerfile"
    return f"{tier}/Dockerfile"


def build_arguments(deployment: DeploymentConfig, tier: Tier) -> dict[str, str]:
    """The build arguments of a tier's Dockerfile: those of the file over those that follow.

    None follows from the model: another one would be another image, and with it other pods.
    """
    arguments = {}
    if tier == "runner" and deployment.platform == "torch":
        arguments["TORCH"] = "cpu" if deployment.gpu_pinning == "none" else "cuda"
    return arguments | deployment.images.build_arguments
