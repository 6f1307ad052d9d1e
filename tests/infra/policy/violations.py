"""What the policy pack says of everything that a program declares."""

from __future__ import annotations

from infra.policy.__main__ import RESOURCE_RULES, STACK_RULES
from infra.policy.resources import Resource
from tests.infra.recorded_program import Program


def violations_of(program: Program) -> list[str]:
    """By every rule, of single resources and of the stack; in sentences."""
    resources = [
        Resource(item.kind, item.name, item.manifest, item.cluster, item.urn)
        for item in program.objects
    ]
    found = [
        violation
        for _, rule in RESOURCE_RULES.values()
        for resource in resources
        for violation in rule(resource)
    ]
    return found + [str(item) for _, rule in STACK_RULES.values() for item in rule(resources)]
