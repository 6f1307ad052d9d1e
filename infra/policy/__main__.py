"""The policy pack: `pulumi preview --policy-pack infra/policy`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pulumi_policy import (
    EnforcementLevel,
    Policy,
    PolicyPack,
    PolicyResource,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    StackValidationArgs,
    StackValidationPolicy,
)

from infra.policy import pod_rules, stack_rules
from infra.policy.resources import Resource

RESOURCE_RULES = {
    "immutable-images": ("Images are named by digest", pod_rules.mutable_image),
    "requests-and-limits": ("Every container has requests and limits", pod_rules.missing_limits),
    "no-unused-token": ("API tokens lie only where they are used", pod_rules.mounted_token),
    "no-plain-secret": ("Secrets are files from a Secret", pod_rules.plain_text_secret),
    "ranks-on-their-nodes": ("Ranks are where their devices are", pod_rules.misplaced_rank),
    "own-instance-only": ("Selectors include the instance", stack_rules.missing_instance),
}
STACK_RULES = {
    "one-rank-per-device": ("Each GPU has one holder", stack_rules.double_booked_device),
}


def _resource(found: ResourceValidationArgs | PolicyResource) -> Resource:
    provider = found.provider.name if found.provider else ""
    return Resource(found.resource_type, found.name, found.props, provider, found.urn)


def _resource_policy(
    name: str, description: str, rule: Callable[[Resource], Iterator[str]]
) -> Policy:
    def validate(found: ResourceValidationArgs, report: ReportViolation) -> None:
        for violation in rule(_resource(found)):
            report(violation, None)

    return ResourceValidationPolicy(name, description, validate)


def _stack_policy(
    name: str, description: str, rule: Callable[[list[Resource]], Iterator[tuple[str, str]]]
) -> Policy:
    def validate(found: StackValidationArgs, report: ReportViolation) -> None:
        for urn, violation in rule([_resource(item) for item in found.resources]):
            report(violation, urn)

    return StackValidationPolicy(name, description, validate)


if __name__ == "__main__":
    PolicyPack(
        "splitstack",
        [_resource_policy(name, *rule) for name, rule in RESOURCE_RULES.items()]
        + [_stack_policy(name, *rule) for name, rule in STACK_RULES.items()],
        EnforcementLevel.MANDATORY,
    )
