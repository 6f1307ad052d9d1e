"""What the inference server's account may do, asked of a real API server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import kubernetes.client
import kubernetes.utils
import pytest

from tests.infra.program_stacks import stack
from tests.infra.recorded_program import run_program
from tests.programs import CONTROL_PLANE, needs

pytestmark = needs(*CONTROL_PLANE)

BLOCKS, SERVERS = "rights-blocks", "rights-servers"
Allowed = Callable[..., bool]


@pytest.fixture(scope="module")
def allowed(control_plane, tmp_path_factory) -> Iterator[Allowed]:
    """Whether the account of the stack's inference server may do something."""
    namespaces = {"blocks": BLOCKS, "inference_server": SERVERS, "create": False}
    found = run_program(stack(tmp_path_factory.mktemp("stack"), namespaces=namespaces))
    with control_plane.client() as client:
        core = kubernetes.client.CoreV1Api(client)
        for name in (BLOCKS, SERVERS):
            core.create_namespace({"metadata": {"name": name}})
        for kind in ("ServiceAccount", "Role", "RoleBinding"):
            made = found.one(kind, "small-inference-server").manifest
            kubernetes.utils.create_from_dict(client, made)

        def ask(verb: str, resource: str, namespace: str = BLOCKS, group: str = "") -> bool:
            account = f"system:serviceaccount:{SERVERS}:small-inference-server"
            asked: dict[str, Any] = {"verb": verb, "resource": resource, "group": group}
            review = kubernetes.client.AuthorizationV1Api(client).create_subject_access_review(
                {"spec": {"user": account, "resourceAttributes": {**asked, "namespace": namespace}}}
            )
            return review.status.allowed

        yield ask
        for name in (BLOCKS, SERVERS):
            core.delete_namespace(name)


@pytest.mark.parametrize("verb", ["list", "watch"])
def test_it_may_follow_blocks_and_their_endpoints(allowed, verb):
    assert allowed(verb, "services")
    assert allowed(verb, "endpointslices", group="discovery.k8s.io")


@pytest.mark.parametrize(
    ("verb", "resource", "namespace"),
    [
        ("create", "services", BLOCKS),
        ("delete", "services", BLOCKS),
        ("list", "secrets", BLOCKS),
        ("list", "configmaps", BLOCKS),
        ("list", "pods", BLOCKS),
        ("list", "services", SERVERS),
        ("list", "services", "default"),
        ("list", "services", ""),
        ("list", "secrets", SERVERS),
    ],
)
def test_it_may_do_nothing_else(allowed, verb, resource, namespace):
    assert not allowed(verb, resource, namespace)
