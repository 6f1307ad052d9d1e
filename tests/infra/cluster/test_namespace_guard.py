"""Which namespaces are guarded, and that the guard goes after them."""

from __future__ import annotations

import pytest

from tests.infra.program_stacks import stack
from tests.infra.recorded_program import run_program


def test_every_namespace_has_a_guard_that_goes_after_it(tmp_path):
    program = run_program(stack(tmp_path))
    (policy,) = program.of_kind("ValidatingAdmissionPolicy")
    assert policy.metadata_name == "splits-small-namespaces"
    bindings = {
        item.manifest["spec"]["paramRef"]["namespace"]: item
        for item in program.of_kind("ValidatingAdmissionPolicyBinding")
    }
    namespaces = {item.metadata_name: item for item in program.of_kind("Namespace")}
    assert bindings.keys() == namespaces.keys()
    for name, namespace in namespaces.items():
        assert bindings[name].urn in namespace.depends_on
        assert policy.urn in bindings[name].depends_on
        (rule,) = bindings[name].manifest["spec"]["matchResources"]["resourceRules"]
        assert (rule["resourceNames"], rule["operations"]) == ([name], ["DELETE"])


@pytest.mark.parametrize("changes", [{"guard": False}, {"retain": True}, {"create": False}])
def test_nothing_is_guarded_that_need_not_be(tmp_path, changes):
    program = run_program(stack(tmp_path, namespaces=changes))
    assert program.of_kind("ValidatingAdmissionPolicy") == []


@pytest.mark.parametrize("create", [True, False])
def test_every_stack_is_seen_wherever_it_is_for_as_long_as_it_is_there(tmp_path, create):
    program = run_program(stack(tmp_path, namespaces={"create": create}))
    holders = {
        item.manifest["metadata"]["namespace"]: item
        for item in program.of_kind("ServiceAccount")
        if item.metadata_name == "small-is-here"
    }
    namespaces = {item.metadata_name: item.urn for item in program.of_kind("Namespace")}
    assert holders.keys() == {"splits", "blocks", "inference-server"}
    assert set(namespaces) == (set(holders) if create else set())
    for name, holder in holders.items():
        assert holder.manifest["automountServiceAccountToken"] is False
        assert not create or namespaces[name] in holder.depends_on
        inside = [it for it in program.objects if it.manifest["metadata"].get("namespace") == name]
        assert all(holder.urn in item.depends_on for item in inside if item is not holder)
