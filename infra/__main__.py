"""The deployment: one split model, from its images to its public API."""

from __future__ import annotations

import pulumi

from infra.cluster.images import ContainerImages
from infra.cluster.inference_server import InferenceServerArgs, InferenceServerTier
from infra.cluster.network_policies import NetworkPolicies, NetworkPoliciesArgs
from infra.cluster.observability.component import Observability, ObservabilityArgs
from infra.cluster.providers import cluster_providers, create_namespaces
from infra.cluster.proxy_block import ProxyBlockArgs, ProxyBlockTier
from infra.cluster.ranks import SplitModel, SplitModelArgs
from infra.cluster.session_store import SessionStore, SessionStoreArgs
from infra.cluster.stack import ClusterStack, read_stack


def deploy(stack: ClusterStack) -> None:
    """Declares every resource of a stack."""
    deployment, secrets, addresses = stack.deployment, stack.secrets, stack.addresses
    name = deployment.deployment_name

    images = ContainerImages(deployment).references
    providers = cluster_providers(deployment, stack.kubeconfigs)
    home = providers[deployment.cluster_of(0)]
    namespaces = create_namespaces(deployment, providers)

    NetworkPolicies(name, NetworkPoliciesArgs(deployment, providers, namespaces))

    SplitModel(
        name,
        SplitModelArgs(deployment, stack.group, images["runner"], secrets, providers, namespaces),
    )

    if deployment.proxy_blocks:
        store = SessionStore(
            name, SessionStoreArgs(deployment, home, secrets.session_store_password, namespaces)
        )
    for block in deployment.proxy_blocks:
        ProxyBlockTier(
            deployment.proxy_name(block.block_id),
            ProxyBlockArgs(
                deployment,
                block,
                addresses,
                images["proxy_block"],
                home,
                store,
                namespaces,
            ),
        )

    if deployment.inference_server.enabled:
        InferenceServerTier(
            name,
            InferenceServerArgs(
                deployment,
                addresses,
                images["inference_server"],
                home,
                secrets.api_keys,
                namespaces,
            ),
        )

    Observability(name, ObservabilityArgs(deployment, providers, namespaces))

    for key, value in stack.outputs(images).items():
        pulumi.export(key, value)


if __name__ == "__main__":
    deploy(read_stack())
