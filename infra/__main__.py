"""The deployment: one split model, from its images to its public API."""

from __future__ import annotations

from typing import Any

import pulumi

from infra.cluster.images import ContainerImages
from infra.cluster.inference_server import InferenceServerArgs, InferenceServerTier
from infra.cluster.network_policies import NetworkPolicies
from infra.cluster.objects import OWN_PROGRAM, Place
from infra.cluster.observability.component import Observability
from infra.cluster.providers import stack_clusters
from infra.cluster.proxy_block import ProxyBlockArgs, ProxyBlockTier
from infra.cluster.ranks import RankSpecs, SplitModel, SplitModelArgs
from infra.cluster.rollout import Rollout, RolloutArgs
from infra.cluster.session_store import SessionStore, SessionStoreArgs
from infra.cluster.stack import ClusterStack, read_stack


def deploy(stack: ClusterStack, place: Place = OWN_PROGRAM) -> dict[str, Any]:
    """Declares every resource of a stack, and returns its outputs."""
    deployment, secrets, addresses = stack.deployment, stack.secrets, stack.addresses
    name = deployment.deployment_name

    within = pulumi.ResourceOptions(parent=place.parent)
    images = ContainerImages(deployment, stack.platform, within).references
    clusters = stack_clusters(deployment, stack.kubeconfigs, stack.later, place)

    policies = NetworkPolicies(name, clusters)

    specs = RankSpecs(stack.group, stack.master, stack.stages, stack.keepers)
    room, stand_ins = stack.applied.room, stack.stand_ins
    runner = SplitModelArgs(clusters, specs, images["runner"], secrets, room, stand_ins)
    model = SplitModel(name, runner)
    tiers: list[pulumi.Resource] = [policies, model]

    if deployment.proxy_blocks:
        store = SessionStore(name, SessionStoreArgs(clusters, secrets.session_store_password))
    for block in deployment.proxy_blocks:
        image, proof = images["proxy_block"], secrets.management_key
        block_args = ProxyBlockArgs(clusters, block, addresses, image, store, proof)
        tiers.append(ProxyBlockTier(deployment.proxy_name(block.block_id), block_args))

    balancer: pulumi.Input[str] = ""
    if deployment.inference_server.enabled:
        image, keys = images["inference_server"], secrets.served_api_keys
        server = InferenceServerTier(name, InferenceServerArgs(clusters, addresses, image, keys))
        tiers.append(server)
        balancer = server.balancer

    rollout_args = RolloutArgs(clusters, stack.group, addresses, images, secrets, tiers)
    rollout = Rollout(name, rollout_args)

    Observability(name, clusters)

    return stack.outputs(images, [*model.ranks, rollout.job], balancer)


if __name__ == "__main__":
    for key, value in deploy(read_stack()).items():
        pulumi.export(key, value)
