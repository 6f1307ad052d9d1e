"""The network rules of a deployment as NetworkPolicy objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.meta import v1 as meta
from pulumi_kubernetes.networking import v1 as networking

from infra.cluster.network_rules import Allowed, NetworkRule, Peer, network_rules
from infra.cluster.objects import metadata, object_options, on_cluster
from infra.stack.config import DeploymentConfig

NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class NetworkPoliciesArgs:
    """`providers` maps a cluster id to its provider; `namespaces` are waited for."""

    deployment: DeploymentConfig
    providers: Mapping[str, pulumi.ProviderResource]
    namespaces: Sequence[pulumi.Resource] = ()


class NetworkPolicies(pulumi.ComponentResource):
    """One policy for each network rule, none where network_policies.enabled is false."""

    def __init__(
        self,
        name: str,
        arguments: NetworkPoliciesArgs,
        options: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("splitstack:deployment:NetworkPolicies", name, None, options)
        deployment = arguments.deployment
        rules = network_rules(deployment) if deployment.network_policies.enabled else ()
        for rule in rules:
            policy = f"{deployment.deployment_name}-{rule.name}"
            networking.NetworkPolicy(
                # Unlike the policy's own name, a resource's is the only one in the stack.
                on_cluster(deployment, f"{policy}-{rule.namespace}", rule.cluster),
                metadata=metadata(deployment, policy, rule.namespace, ""),
                spec=policy_spec(rule),
                opts=object_options(
                    self, arguments.providers[rule.cluster], depends_on=arguments.namespaces
                ),
            )
        self.register_outputs({})


def policy_spec(rule: NetworkRule) -> networking.NetworkPolicySpecArgs:
    """Both directions are always named: a policy without a rule for one denies it."""
    return networking.NetworkPolicySpecArgs(
        pod_selector=meta.LabelSelectorArgs(match_labels=rule.selected),
        policy_types=["Ingress", "Egress"],
        ingress=[
            networking.NetworkPolicyIngressRuleArgs(from_=_peers(item.peers), ports=_ports(item))
            for item in rule.ingress
        ],
        egress=[
            networking.NetworkPolicyEgressRuleArgs(to=_peers(item.peers), ports=_ports(item))
            for item in rule.egress
        ],
    )


def _peers(peers: Sequence[Peer]) -> list[networking.NetworkPolicyPeerArgs] | None:
    return [
        networking.NetworkPolicyPeerArgs(
            namespace_selector=meta.LabelSelectorArgs(
                match_labels={NAMESPACE_NAME_LABEL: peer.namespace}
            ),
            pod_selector=meta.LabelSelectorArgs(match_labels=dict(peer.pod_labels))
            if peer.pod_labels
            else None,
        )
        for peer in peers
    ] or None


def _ports(item: Allowed) -> list[networking.NetworkPolicyPortArgs] | None:
    return [
        networking.NetworkPolicyPortArgs(port=port, protocol=protocol)
        for port in item.ports
        for protocol in item.protocols
    ] or None
