"""What keeps a namespace that other stacks are in: the API server refuses to delete it.

The stack that makes a namespace takes everything in it along when it goes. So every stack has an
account of its name, which nobody uses, wherever it is: while one of another stack is there the
namespace stays, and who wants it gone is told whose it is.
https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/
"""

from __future__ import annotations

from collections.abc import Sequence

import pulumi
from pulumi_kubernetes.admissionregistration import v1 as admission
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.meta import v1 as meta

from infra.cluster.labels import INSTANCE, MANAGED_BY, PROJECT, labels
from infra.cluster.objects import object_options, on_cluster
from infra.stack.config import DeploymentConfig

# Of kinds that nothing else in the API server watches, as ConfigMaps, it sees no new ones once the
# last policy with such parameters has gone: docs/decisions/0027.
_SEEN_BY = "ServiceAccount"
_MESSAGE = (
    "'namespace ' + oldObject.metadata.name + ' has objects of the stack ' + "
    f"params.metadata.labels['{INSTANCE}'] + ', which would go with it: destroy that stack first, "
    "or have the namespace stay with namespaces.retain'"
)


def holder_name(deployment: DeploymentConfig) -> str:
    """The account by which a stack is seen in a namespace."""
    return f"{deployment.deployment_name}-is-here"


def hold_namespace(
    deployment: DeploymentConfig,
    cluster: str,
    namespace: str,
    options: pulumi.ResourceOptions,
) -> core.ServiceAccount:
    """There before everything else of the stack in that namespace, and gone after it."""
    name = holder_name(deployment)
    return core.ServiceAccount(
        on_cluster(deployment, f"{name}-{namespace}", cluster),
        metadata=meta.ObjectMetaArgs(name=name, namespace=namespace, labels=labels(deployment, "")),
        automount_service_account_token=False,
        opts=options,
    )


def guard_namespaces(
    deployment: DeploymentConfig,
    cluster: str,
    names: Sequence[str],
    provider: pulumi.ProviderResource,
    parent: pulumi.Resource | None,
) -> dict[str, pulumi.Resource]:
    """What guards each of the namespaces, by its name; it goes after it."""
    # It is in no namespace, where another stack may have the same deployment_name elsewhere.
    policy_name = f"{deployment.namespace}-{deployment.deployment_name}-namespaces"
    policy = admission.ValidatingAdmissionPolicy(
        on_cluster(deployment, policy_name, cluster),
        metadata=meta.ObjectMetaArgs(name=policy_name, labels=labels(deployment, "")),
        spec=admission.ValidatingAdmissionPolicySpecArgs(
            failure_policy="Fail",
            param_kind=admission.ParamKindArgs(api_version="v1", kind=_SEEN_BY),
            match_constraints=_deletion(names),
            # Asked once for each account that a binding finds; where it finds none, not at all.
            validations=[admission.ValidationArgs(expression="false", message_expression=_MESSAGE)],
        ),
        opts=object_options(parent, provider),
    )
    return {
        name: _binding(
            deployment,
            cluster,
            name,
            policy_name,
            object_options(parent, provider, depends_on=[policy]),
        )
        for name in names
    }


def _binding(
    deployment: DeploymentConfig,
    cluster: str,
    namespace: str,
    policy: str,
    options: pulumi.ResourceOptions,
) -> admission.ValidatingAdmissionPolicyBinding:
    name = f"{policy}-{namespace}"
    others = [
        meta.LabelSelectorRequirementArgs(key=MANAGED_BY, operator="In", values=[PROJECT]),
        meta.LabelSelectorRequirementArgs(
            key=INSTANCE, operator="NotIn", values=[deployment.deployment_name]
        ),
    ]
    return admission.ValidatingAdmissionPolicyBinding(
        on_cluster(deployment, name, cluster),
        metadata=meta.ObjectMetaArgs(name=name, labels=labels(deployment, "")),
        spec=admission.ValidatingAdmissionPolicyBindingSpecArgs(
            policy_name=policy,
            match_resources=_deletion([namespace]),
            param_ref=admission.ParamRefArgs(
                namespace=namespace,
                selector=meta.LabelSelectorArgs(match_expressions=others),
                parameter_not_found_action="Allow",
            ),
            validation_actions=["Deny"],
        ),
        opts=options,
    )


def _deletion(namespaces: Sequence[str]) -> admission.MatchResourcesArgs:
    rule = admission.NamedRuleWithOperationsArgs(
        api_groups=[""],
        api_versions=["v1"],
        operations=["DELETE"],
        resources=["namespaces"],
        resource_names=list(namespaces),
    )
    return admission.MatchResourcesArgs(resource_rules=[rule])
