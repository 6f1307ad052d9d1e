"""The network rules of a deployment as NetworkPolicy objects."""

from __future__ import annotations

from collections.abc import Sequence

import pulumi
from pulumi_kubernetes.meta import v1 as meta
from pulumi_kubernetes.networking import v1 as networking

from infra.cluster.network_rules import Allowed, NetworkRule, Peer, network_rules
from infra.cluster.objects import Clusters, Component

NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"


class NetworkPolicies(Component):
    """One policy for each network rule, none where network_policies.enabled is false."""

    def __init__(
        self, name: str, args: Clusters, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("NetworkPolicies", name, args, opts)
        deployment = self._deployment
        for rule in network_rules(deployment) if deployment.network_policies.enabled else ():
            policy = f"{deployment.deployment_name}-{rule.name}"
            networking.NetworkPolicy(
                # Unlike the policy's own name, a resource's is the only one in the stack.
                self._resource_name(f"{policy}-{rule.namespace}", rule.cluster),
                metadata=self._metadata(policy, namespace=rule.namespace),
                spec=policy_spec(rule),
                opts=self._options(cluster=rule.cluster),
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
