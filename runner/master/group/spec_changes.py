"""What two specs of a group differ in, and whether the weights of one serve the other. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

from contract.specs import GroupSpec
from runner.transport.control import Served

# What may change while requests are served by the weights that are there.
FREE_KEYS = (
    "request_deadline_s",
    "max_concurrent_requests",
    "prefill_token_budget",
    "load_timeout_s",
    "swap_drain_s",
)
_MAIN = "main"  # what a hub's model without a revision is


def alike(one: Served, other: Served) -> bool:
    """Whether the weights of one serve the other."""
    return one.commit == other.commit and is_free(one.spec, other.spec)


def is_free(old: GroupSpec, new: GroupSpec) -> bool:
    """Whether `new` is served by the weights of `old`, from one step to the next."""
    return changed_keys(old, new) <= set(FREE_KEYS)


def changed_keys(old: GroupSpec, new: GroupSpec) -> set[str]:
    """The keys that differ; a model without a revision is its main branch's."""

    def main(spec: GroupSpec) -> GroupSpec:
        return replace(spec, model_revision=spec.model_revision or _MAIN)

    old, new = main(old), main(new)
    differs: Callable[[str], bool] = lambda name: getattr(old, name) != getattr(new, name)  # noqa: E731
    return {item.name for item in fields(GroupSpec) if differs(item.name)}


def what_changes(old: GroupSpec, new: GroupSpec) -> str:
    """For who looks at it later."""
    if old.model_name != new.model_name:
        return f"model changed from {old.model_name} to {new.model_name}"
    return f"{', '.join(sorted(changed_keys(old, new)))} changed"
