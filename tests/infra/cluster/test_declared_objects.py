"""What doctor looks for is what the program declares."""

from __future__ import annotations

import pytest

from infra.cluster.declared_objects import declared_objects
from infra.stack.file import parse_deployment
from tests.infra.program_stacks import NAMES, SECRETS, matrix
from tests.infra.recorded_program import TOKEN, run_program

_IRREGULAR = {"NetworkPolicy": "networkpolicies"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_secrets", [True, False])
def test_every_object_of_the_program_is_known_by_name(name, with_secrets, tmp_path):
    mapping = matrix(tmp_path)[name]
    secrets = {"group_token": TOKEN, **(SECRETS if with_secrets else {})}
    declared = declared_objects(
        parse_deployment(mapping), api_keys=with_secrets, store_password=with_secrets
    )
    assert {(item.cluster, item.resource, item.namespace, item.name) for item in declared} == {
        (
            item.cluster,
            _IRREGULAR.get(item.short_kind, item.short_kind.lower() + "s"),
            item.manifest["metadata"].get("namespace", ""),
            item.metadata_name,
        )
        for item in run_program(mapping, secrets=secrets).objects
    }


def test_paths_are_those_of_the_api(tmp_path):
    paths = {
        item.resource: item.path
        for name in ("everything on", "pinning dra", "stateful sets", "1 rank")
        for item in declared_objects(parse_deployment(matrix(tmp_path)[name]))
    }
    assert paths["pods"] == "/api/v1/namespaces/splits/pods/small-rank-0"
    assert paths["namespaces"] == "/api/v1/namespaces/inference-server"
    assert paths["statefulsets"] == "/apis/apps/v1/namespaces/splits/statefulsets/small-rank-1"
    assert paths["horizontalpodautoscalers"].startswith("/apis/autoscaling/v2/namespaces/blocks/")
    assert paths["resourceclaimtemplates"].startswith("/apis/resource.k8s.io/v1/namespaces/splits/")
