"""What doctor asks clusters about, out of a run of the program that leaves nothing behind."""

from __future__ import annotations

import pulumi

from infra.cluster.fit import plan_on_clusters
from infra.inspection.declared import PLURALS, DeclaredObject, declared_objects
from infra.stack.file import parse_deployment
from tests.infra.program_stacks import NAMES, matrix


def declared(folder, name) -> list[DeclaredObject]:
    return declared_objects(*plan_on_clusters(parse_deployment(matrix(folder)[name])))


def test_paths_are_those_of_the_api(tmp_path):
    paths = {
        item.resource: item.path
        for name in ("everything on", "pinning dra", "bare pods")
        for item in declared(tmp_path, name)
    }
    assert paths["pods"] == "/api/v1/namespaces/splits/pods/small-rank-1"
    assert paths["namespaces"] == "/api/v1/namespaces/inference-server"
    assert paths["statefulsets"] == "/apis/apps/v1/namespaces/splits/statefulsets/small-rank-1"
    assert paths["networkpolicies"].startswith("/apis/networking.k8s.io/v1/namespaces/")
    assert paths["horizontalpodautoscalers"].startswith("/apis/autoscaling/v2/namespaces/blocks/")
    assert paths["resourceclaimtemplates"].startswith("/apis/resource.k8s.io/v1/namespaces/splits/")


def test_the_written_plurals_are_those_of_every_kind_that_some_stack_has(tmp_path):
    stacks = matrix(tmp_path)
    kinds = {
        item.kind
        for name in NAMES
        for item in declared_objects(*plan_on_clusters(parse_deployment(stacks[name])))
    }
    assert kinds == set(PLURALS)


def test_objects_of_both_clusters(tmp_path):
    found = declared(tmp_path, "two clusters")
    pods = {(item.cluster, item.name) for item in found if item.kind == "StatefulSet"}
    assert pods == {("home", "small-rank-0"), ("away", "small-rank-1")}
    first = [(item.cluster, item.name) for item in found if item.kind == "Namespace"]
    assert first == [(item.cluster, item.namespace or item.name) for item in found[: len(first)]]


def test_every_secret_that_a_stack_may_have_is_looked_for(tmp_path):
    found = {item.name for item in declared(tmp_path, "everything on") if item.kind == "Secret"}
    assert found == {
        "small-ranks",
        "small-session-store",
        "small-inference-server",
        "small-proxy-first",
        "small-proxy-second",
        "small-rollout",
    }


def test_a_second_run_finds_the_same_and_nothing_is_left_of_the_first(tmp_path):
    assert declared(tmp_path, "1 rank") == declared(tmp_path, "1 rank")
    assert pulumi.runtime.get_root_resource() is None
    assert pulumi.get_stack() == "stack"
    assert pulumi.runtime.settings.get_monitor() is None
